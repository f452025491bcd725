"""Pictures whose right border continues at the left one, or the lower at the upper: tileable textures, panoramas.

A picture is continued beyond its right and lower border by its own beginning and processed as any other. The result's
continuation, which follows the border without a step, then fades into the result's beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import UserError
from .resample_rows import Rows
from .target import Size

Wrap = Literal["none", "x", "y", "both"]
WRAPS: tuple[Wrap, ...] = get_args(Wrap)
CLOSE = 1 / 32  # px of the result that its beginning and its continuation may be apart
LEAST = 16  # px of the small picture that continue it; it takes more where that fits the result's pixels better


def require_wrap(wrap: str) -> None:
    """Raise UserError for an unknown choice."""
    if wrap not in WRAPS:
        raise UserError(f"Wrap {wrap!r} is unknown: choose one of {', '.join(WRAPS)}.")


def fitting(length: int, result: int, least: int = LEAST) -> tuple[int, int]:
    """How many px to add to a picture's side, and to its result's, so that both have nearly the same factor.

    `length` px become `result` px. At least `least` px are added, or the whole side if it is shorter. Up to seven times
    `least` leave at most 1/8 px between the result's beginning and its continuation, whatever the factor.
    """
    choices = range(min(least, length), min(7 * least, length) + 1)
    apart = {px: _apart(px, length, result) for px in choices}
    px = next((px for px, distance in apart.items() if distance < CLOSE), min(choices, key=apart.__getitem__))
    return px, round(px * result / length)


def _apart(px: int, length: int, result: int) -> float:
    """How far, in px, the result's beginning and its continuation are apart if `px` are added to its picture."""
    exact = px * result / length
    return abs(exact - round(exact)) * length / (length + px)


@dataclass(frozen=True)
class Continuation:
    """How far a picture, and its result, go on beyond their lower and right border; 0 where a side does not wrap.

    Attributes:
        size, result: the picture's and its result's own (height, width).
        by, result_by: what is added to these.
    """

    size: Size
    result: Size
    by: Size = (0, 0)
    result_by: Size = (0, 0)

    @classmethod
    def of(cls, wrap: Wrap, size: Size, result: Size, least: int = LEAST) -> Continuation:
        """For a picture and its result of these sizes; `least` as in `fitting`."""
        (down, large_down), (right, large_right) = (fitting(*sides, least) for sides in zip(size, result, strict=True))
        x, y = int(wrap in ("x", "both")), int(wrap in ("y", "both"))
        return cls(size, result, (y * down, x * right), (y * large_down, x * large_right))

    @property
    def whole(self) -> Size:
        """The continued picture's size."""
        return self.size[0] + self.by[0], self.size[1] + self.by[1]

    @property
    def whole_result(self) -> Size:
        return self.result[0] + self.result_by[0], self.result[1] + self.result_by[1]

    def continued(self, image: Tensor) -> Tensor:
        """(..., H, W) -> the picture and its beginning again; itself if nothing wraps."""
        if self.by == (0, 0):
            return image
        down, right = (torch.arange(side, device=image.device) for side in self.whole)
        return image[..., down % self.size[0], :][..., right % self.size[1]]

    def closed(self, rows: Rows) -> Rows:
        """Rows (..., n, W) of the result, from rows of the continued picture's result."""
        if self.by == (0, 0):
            return rows
        (height, width), (down, right) = self.result, self.result_by

        def closed_rows(top: int, bottom: int) -> Tensor:
            found = rows(top, bottom)
            if top < down:
                after = rows(height + top, height + min(bottom, down))
                found = torch.cat(
                    [_faded(after, found[..., : after.shape[-2], :], top, down), found[..., after.shape[-2] :, :]], -2
                )
            across = found.transpose(-1, -2)
            start = _faded(across[..., width:, :], across[..., :right, :], 0, right)
            return torch.cat([start, across[..., right:width, :]], -2).transpose(-1, -2)

        return closed_rows


def _faded(before: Tensor, after: Tensor, top: int, length: int) -> Tensor:
    """Rows (..., n, W) from `top` on of a smooth change from one picture to another over `length` rows."""
    share = (torch.arange(top, top + after.shape[-2], device=after.device) + 0.5) / max(1, length)
    share = (share * share * (3 - 2 * share))[:, None].to(after)
    return before + share * (after - before)
