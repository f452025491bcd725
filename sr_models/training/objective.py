"""The interface between the training loop and an objective."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, TypedDict

from torch import Tensor, nn

from .draws import Draws

Losses = dict[str, Tensor]


class ParameterGroup(TypedDict):
    """Weights with their own learning rate; gradients are clipped per group."""

    name: str
    params: list[nn.Parameter]
    lr: float


class Objective(Protocol):
    """A module whose forward pass returns the losses of a batch, and what the loop needs to train it."""

    def __call__(self, batch: dict[str, Tensor], draws: Draws, step: int) -> Losses: ...

    def groups(self) -> list[ParameterGroup]:
        """All trainable weights."""
        ...

    def averaged(self) -> list[nn.Parameter]:
        """Weights of the result, which are averaged over time (EMA); not those of a discriminator and the like."""
        ...

    def restore(self, lr: Tensor, seed: int) -> Tensor:
        """LR (1, 3, h, w) -> SR (1, 3, 4h, 4w), both in [0, 1], for validation."""
        ...

    def save(self, folder: Path) -> Path:
        """Write the result in the format that users load; returns its path."""
        ...

    def settings(self) -> dict[str, Any]:
        """Settings that must match to resume a run."""
        ...
