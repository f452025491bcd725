"""What an SR model is made of: a recipe, a denoiser, a codec and a conditioner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from .recipe import Recipe
from .step import Network

Result = TypeVar("Result")
Condition = Any  # what a conditioner gives to the denoiser of the same family; nothing else looks into it


class Conditioner(Protocol):
    """What a denoiser needs to know about a whole picture: a prompt, tags, an embedding of the picture."""

    def __call__(self, picture: Tensor, index: int) -> Condition:
        """For the picture (1, 3, H, W) in [0, 1] that is number `index` of its batch."""
        ...


@dataclass(frozen=True)
class Fixed:
    """The same condition for every picture: a fixed prompt, or nothing."""

    condition: Condition = None

    def __call__(self, picture: Tensor, index: int) -> Condition:
        return self.condition


class Denoiser(Protocol):
    """A network, and how to have it ready: on its device, patched, conditioned on the picture."""

    def run(self, work: Callable[[Network], Result], shape: tuple[int, ...], condition: Condition = None) -> Result:
        """work(network). `shape` is the largest latent (B, c, h, w) that one evaluation will get, `condition` what the
        model's conditioner said about the picture.

        network: latent (B, c, h, w), lr (B, 3, h', w') and timestep (B,) -> the raw prediction (B, c, h, w);
        float32 in and out, on the caller's device. `lr` is the LR picture in [-1, 1] on the latent's window of the
        canvas.
        """
        ...

    def tiles_at_once(self, shape: tuple[int, ...]) -> int:
        """How many tiles of a shape (1, c, h, w) to give the network at once."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The precision that it computes in."""
        ...

    def in_float32(self) -> Denoiser:
        """The same in float32, for tiles that overflowed."""
        ...


class Codec(Protocol):
    """Picture <-> latent, float32 in and out, on the caller's device.

    `factor` is picture side over latent side, `latent_channels` the c of (B, c, h, w).
    """

    @property
    def factor(self) -> int: ...
    @property
    def latent_channels(self) -> int: ...
    @property
    def is_local(self) -> bool:
        """Whether a pixel depends on its own latent pixel only, and the other way round."""
        ...

    def encode(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], sides multiples of `factor` -> (B, c, H/factor, W/factor)."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, 3, h factor, w factor), about [0, 1], not clamped."""
        ...

    def preview(self, latent: Tensor) -> Tensor:
        """A cheap rough picture on the latent grid: (B, 3, h, w) in [0, 1]."""
        ...


@dataclass(frozen=True)
class SRModel:
    """Everything that turns a small picture into a large one; see `upscale`."""

    recipe: Recipe
    denoiser: Denoiser
    codec: Codec
    conditioner: Conditioner = Fixed()
