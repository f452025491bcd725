"""The settings of an upscale, shared by the nodes, the command line, Automatic1111 and Python."""

from __future__ import annotations

from dataclasses import dataclass

from ..canvas.color import ColorMatch


@dataclass(frozen=True)
class UpscaleOptions:
    """How to upscale. None selects a value by the model's recipe or the available memory.

    Attributes:
        scale: 1 to 8; the result has exactly round(scale * side) px.
        tile, overlap: in pixels of the network's result; None uses the recipe's. The tile is rounded up to a size that
            the network accepts; the overlap is at most half a tile.
        color: how colours are matched to the input; None uses the recipe's method.
        seed: seed of the noise, for methods that start from noise. All pictures of a batch use the same seed, so that
            a picture's result does not depend on its place in the batch.
        detail: from 0 (faithful) to 1 (detailed), for models that have both; None uses the model's default.
        batch: how many tiles the network processes at once; None lets the denoiser choose.
    """

    scale: float = 4.0
    tile: int | None = None
    overlap: int | None = None
    color: ColorMatch | None = None
    seed: int = 0
    batch: int | None = None
    detail: float | None = None


DEFAULTS = UpscaleOptions()
DETAIL = 0.7  # where a user interface must show a number in place of the model's default
