"""The settings of an upscale, shared by the nodes, the command line, Automatic1111 and Python."""

from __future__ import annotations

from dataclasses import dataclass

from ..canvas.color import ColorMatch
from ..canvas.target import Factor, Size, Target, size_for


@dataclass(frozen=True)
class UpscaleOptions:
    """How to upscale. None selects a value by the model's recipe or the available memory.

    Attributes:
        scale: 1 to 8; the result has exactly round(scale * side) px.
        target: the size to reach, in place of `scale`; a larger picture is only shrunk, without the network.
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
    target: Target | None = None

    @property
    def goal(self) -> Target:
        """The target, or the scale as one."""
        return self.target or Factor(self.scale)

    def size(self, height: int, width: int) -> Size:
        """The size of the result for a picture of this size. Raises UserError if it is out of bounds."""
        return size_for(self.goal, height, width)

    def only_shrinks(self, height: int, width: int) -> bool:
        """Whether the result is smaller than the picture."""
        return self.goal.factor(height, width) < 1


DEFAULTS = UpscaleOptions()
DETAIL = 0.7  # where a user interface must show a number in place of the model's default
