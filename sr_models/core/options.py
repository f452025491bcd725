"""The settings of an upscale, shared by the nodes, the command line, Automatic1111 and Python."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..canvas.color import ColorMatch
from ..canvas.target import Box, Exact, Factor, Size, Target, is_number, is_whole, size_for
from ..canvas.wrap import Continuation, Wrap, require_wrap
from ..errors import UserError


@dataclass(frozen=True)
class UpscaleOptions:
    """How to upscale. None selects a value by the model's recipe or the available memory. Raises UserError for values
    of another type.

    Attributes:
        scale: 1 to 8; the result has exactly round(scale * side) px.
        target: the size to reach, in place of `scale`, also as a text for `Box.parse`, such as "4k"; a larger picture
            is only shrunk, without the network.
        tile, overlap: in pixels of the network's result; None uses the recipe's. The tile is rounded up to a size that
            the network accepts; the overlap is at most half a tile.
        color: how colours are matched to the input; None uses the recipe's method.
        seed: seed of the noise, for methods that start from noise. All pictures of a batch use the same seed, so that
            a picture's result does not depend on its place in the batch.
        detail: from 0 (faithful) to 1 (detailed), for models that have both; None uses the model's default.
        strength: how much of the network's detail the result has, from 0 to 1. It counts for frequencies that the
            picture itself cannot hold, which at 0 are those of the bicubically enlarged picture.
        wrap: "x", "y" or "both" for pictures whose right border continues at the left one, or the lower one at the
            upper, such as tileable textures and panoramas.
        batch: how many tiles the network processes at once; None lets the denoiser choose.
    """

    scale: float = 4.0
    tile: int | None = None
    overlap: int | None = None
    color: ColorMatch | None = None
    seed: int = 0
    batch: int | None = None
    detail: float | None = None
    target: Target | str | None = None
    strength: float = 1.0
    wrap: Wrap = "none"

    def __post_init__(self) -> None:
        for name in ("tile", "overlap", "seed", "batch"):
            value = getattr(self, name)
            if not is_whole(value) and (value is not None or name == "seed"):
                raise UserError(f"{name.capitalize()} {value!r} is not a whole number: choose one, or leave it out.")
        if self.detail is not None and not is_number(self.detail):
            raise UserError(f"Detail {self.detail!r} is not a number: choose one from 0 (faithful) to 1 (detailed).")
        if not is_number(self.strength) or not 0 <= self.strength <= 1:
            raise UserError(f"Strength {self.strength!r} is out of bounds: choose a number from 0 to 1.")
        require_wrap(self.wrap)
        if self.target is not None and not isinstance(self.target, str) and not hasattr(self.target, "factor"):
            raise UserError(
                f"Target {self.target!r} is not a size: choose Side, Megapixels, Box or a text such as '4k'."
            )
        _ = self.goal

    @property
    def goal(self) -> Target:
        """The target, or the scale as one. Raises UserError for what is neither a size nor a number."""
        scale = Factor(self.scale)
        return scale if self.target is None else Box.parse(self.target) if isinstance(self.target, str) else self.target

    def size(self, height: int, width: int) -> Size:
        """The size of the result for a picture of this size. Raises UserError if it is out of bounds."""
        return size_for(self.goal, height, width)

    def only_shrinks(self, height: int, width: int) -> bool:
        """Whether the result is smaller than the picture."""
        return self.goal.factor(height, width) < 1

    def continued(self, height: int, width: int) -> tuple[Continuation, UpscaleOptions]:
        """How a picture of this size is continued where it wraps, and the options for the continued picture.

        Raises UserError as `size` does.
        """
        way = Continuation.of(self.wrap, (height, width), self.size(height, width))
        return way, self if way.by == (0, 0) else replace(self, wrap="none", target=Exact(*way.whole_result))


DEFAULTS = UpscaleOptions()
DETAIL = 1.0  # where a user interface must show a number in place of the model's default
