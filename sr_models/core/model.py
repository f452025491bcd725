"""The parts of an SR model: a recipe, a denoiser, a codec and a conditioner."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ..errors import UserError
from .recipe import Recipe
from .step import Network, Step

Result = TypeVar("Result")
Stage = Callable[[int, int], object]
Condition = Any  # a conditioner's result, which only the denoiser of the same family reads


class Conditioner(Protocol):
    """Computes the condition for a whole picture: an encoded prompt, tags, or an embedding of the picture."""

    def __call__(self, picture: Tensor, index: int) -> Condition:
        """The condition for a picture (1, 3, H, W) in [0, 1], which has the position `index` in its batch."""
        ...


@dataclass(frozen=True)
class Fixed:
    """The same condition for every picture: a fixed prompt, or nothing."""

    condition: Condition = None

    def __call__(self, picture: Tensor, index: int) -> Condition:
        return self.condition


@dataclass(frozen=True)
class Guided:
    """Two conditions for classifier-free guidance (arXiv 2207.12598): the network runs with each."""

    positive: Condition
    negative: Condition
    scale: float

    def combined(self, positive: Tensor, negative: Tensor) -> Tensor:
        """The guided prediction from those with each condition."""
        return negative + self.scale * (positive - negative)


class Denoiser(Protocol):
    """Runs a network: places it on its device, applies patches, and passes the condition."""

    def run(self, work: Callable[[Network], Result], shape: tuple[int, ...], condition: Condition = None) -> Result:
        """Returns work(network). `shape` is the largest latent (B, c, h, w) of one pass of the network, `condition` the
        result of the model's conditioner for the picture.

        network: latent (B, c, h, w), lr (B, 3, h', w') and timestep (B,) -> the raw prediction (B, c, h, w);
        float32 in and out, on the caller's device. `lr` is the part of the LR picture, in [-1, 1], that belongs to
        the latent.
        """
        ...

    def tiles_at_once(self, shape: tuple[int, ...]) -> int:
        """How many tiles of shape (1, c, h, w) the network should process at once; 0 if one is too large for the
        device's free memory."""
        ...

    def memory(self, shape: tuple[int, ...]) -> int:
        """Bytes for one pass on a latent (B, c, h, w), beside the weights; 0 if unknown, or if its host takes care of
        it."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the computation."""
        ...

    def in_float32(self) -> Denoiser:
        """A copy that computes in float32, for tiles that overflowed."""
        ...


class Codec(Protocol):
    """Encodes pictures to latents and back, float32 in and out, on the caller's device.

    `factor` is the picture side divided by the latent side, `latent_channels` the c of (B, c, h, w).
    """

    @property
    def factor(self) -> int: ...
    @property
    def latent_channels(self) -> int: ...
    @property
    def is_local(self) -> bool:
        """Whether each pixel depends only on the latent pixel at its place, and vice versa."""
        ...

    def memory(self, height: int, width: int) -> int:
        """Bytes that should be free on its device to encode and decode a picture of this size, beside the weights; 0 if
        its host takes care of it."""
        ...

    def encode(self, image: Tensor, stage: Stage | None = None) -> Tensor:
        """(B, 3, H, W) in [0, 1], sides multiples of `factor` -> (B, c, H/factor, W/factor).

        A codec that takes longer than a moment calls `stage` with (rows done, rows in all).
        """
        ...

    def decode(self, latent: Tensor, stage: Stage | None = None) -> Tensor:
        """(B, c, h, w) -> (B, 3, h * factor, w * factor), about [0, 1], not clamped; `stage` as in `encode`."""
        ...

    def preview(self, latent: Tensor) -> Tensor:
        """A rough picture that is fast to compute, one pixel per latent pixel: (B, 3, h, w) in [0, 1]."""
        ...


@dataclass(frozen=True)
class DetailRange:
    """For models with two sets of weights: what is between the faithful one (0) and the detailed one (1).

    Attributes:
        default: the position that is used if the user chooses none.
        at: position -> the denoiser with the weights mixed. It keeps the last mixture.
    """

    default: float
    at: Callable[[float], Denoiser]


@dataclass(frozen=True)
class Pass:
    """A step and its denoiser. The results of all passes of a model are added."""

    step: Step
    denoiser: Denoiser


@dataclass(frozen=True)
class SRModel:
    """All parts of a super-resolution model; see `upscale`. A model without `detail` has one set of weights.

    Attributes:
        passes: empty for a model with a single pass, which is the recipe's step with `denoiser`.
        by_picture: picture (1, 3, H, W) in [0, 1] -> the model with its weights for this picture, until the next call;
            None if the weights are the same for all pictures.
        look_again: a condition, and a picture (1, 3, H, W) in [0, 1] -> the condition with what is seen in this
            picture, for a recipe with `further` steps; None if the condition does not depend on the picture.
        pictures: how many pictures of a batch the conditioner has a condition for; 1 means any number.
        prompted: a user's text -> the conditioner for it; None if the text encoders are not kept.
    """

    recipe: Recipe
    denoiser: Denoiser
    codec: Codec
    conditioner: Conditioner = Fixed()
    detail: DetailRange | None = None
    passes: Iterable[Pass] = ()
    by_picture: Callable[[Tensor], SRModel] | None = None
    look_again: Callable[[Condition, Tensor], Condition] | None = None
    pictures: int = 1
    prompted: Callable[[str], Conditioner] | None = None

    def for_picture(self, picture: Tensor) -> SRModel:
        """The model with its weights for a picture (1, 3, H, W) in [0, 1]; itself if they are the same for all."""
        return self if self.by_picture is None else self.by_picture(picture)

    def require_pictures(self, count: int) -> None:
        """Raise UserError unless there is one condition for a batch of this size, or one per picture."""
        if self.pictures not in (1, count):
            raise UserError(
                f"The number of prompts ({self.pictures}) is not that of the images ({count}): connect one prompt, or "
                "one per image."
            )

    def only(self, index: int) -> SRModel:
        """The model for picture number `index` of a batch alone."""
        return replace(self, conditioner=lambda picture, _: self.conditioner(picture, index), pictures=1)

    def with_prompt(self, text: str | None) -> SRModel:
        """The model with a user's text as its prompt; itself for None. Raises ValueError without `prompted`."""
        if text is None:
            return self
        if self.prompted is None:
            raise ValueError("This model's text encoders were not kept: open the LoRA with `with_captions`.")
        return replace(self, conditioner=self.prompted(text))

    def at_detail(self, position: float | None) -> SRModel:
        """The model at a position from 0 (faithful) to 1 (detailed), or at its default; itself if it has no range.

        Raises UserError for a position out of bounds.
        """
        if position is not None and not 0 <= position <= 1:
            raise UserError(f"Detail {position:g} is out of bounds: choose a number from 0 (faithful) to 1 (detailed).")
        if self.detail is None:
            return self
        chosen = self.detail.default if position is None else position
        return replace(self, denoiser=self.detail.at(chosen), detail=None)

    def all_passes(self) -> tuple[Pass, ...]:
        """What runs on each tile, in order; at least one."""
        return tuple(self.passes) or (Pass(self.recipe.step, self.denoiser),)
