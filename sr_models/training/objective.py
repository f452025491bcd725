"""What the training loop asks of what it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, TypedDict

from torch import Tensor, nn

from .draws import Draws

Losses = dict[str, Tensor]


class ParameterGroup(TypedDict):
    """Weights with a learning rate of their own; the gradients of a group are clipped together."""

    name: str
    params: list[nn.Parameter]
    lr: float


class Objective(Protocol):
    """What the loop trains: a module whose forward pass gives the losses of a batch, and what belongs to it."""

    def __call__(self, batch: dict[str, Tensor], draws: Draws, step: int) -> Losses: ...

    def groups(self) -> list[ParameterGroup]:
        """Everything that learns."""
        ...

    def averaged(self) -> list[nn.Parameter]:
        """What is averaged over time, for the result: the discriminator and the like are not."""
        ...

    def restore(self, lr: Tensor, seed: int) -> Tensor:
        """LR (1, 3, h, w) -> SR (1, 3, 4h, 4w), both in [0, 1], for validation."""
        ...

    def save(self, folder: Path) -> Path:
        """Write the result as users load it; returns what to give to them."""
        ...

    def settings(self) -> dict[str, Any]:
        """What a run must keep to be gone on with."""
        ...
