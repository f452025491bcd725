"""The settings of an upscale, the same for every door: nodes, command line, Automatic1111 and Python."""

from __future__ import annotations

from dataclasses import dataclass

from ..canvas.color import ColorMatch


@dataclass(frozen=True)
class UpscaleOptions:
    """How to upscale; None leaves a choice to the model's recipe or to the memory.

    Attributes:
        scale: 1 to 8; the result has exactly round(scale * side) px.
        tile, overlap: in pixels of the network's result; None takes the recipe's. The tile is rounded up to what the
            network takes; the overlap is at most half a tile.
        color: how colours are matched to the input; None takes the recipe's.
        seed: of the noise, for methods that start from noise. Every picture of a batch gets the same, so that a
            picture's result does not depend on its place.
        batch: how many tiles go through the network at once; None lets the denoiser choose.
    """

    scale: float = 4.0
    tile: int | None = None
    overlap: int | None = None
    color: ColorMatch | None = None
    seed: int = 0
    batch: int | None = None


DEFAULTS = UpscaleOptions()
