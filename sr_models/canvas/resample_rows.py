"""`resize` for a few rows of the result at a time, reading only the source rows that they need.

Bicubic interpolation as in torch: a = -0.75 between pixel centres for enlarging; for shrinking, a = -0.5 over a
window stretched by the shrinking factor (antialias).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .resize import resize

Rows = Callable[[int, int], Tensor]


def rows_of(picture: Tensor, first: int = 0) -> Rows:
    """Rows of a picture (..., H, W) in memory, of which the first is number `first`."""
    return lambda top, bottom: picture[..., top - first : bottom - first, :]


def resized_rows(rows: Rows, size: tuple[int, int], target: tuple[int, int], top: int, bottom: int) -> Tensor:
    """Rows [top, bottom) of the picture resized from `size` to `target`, both (H, W).

    rows(first, last) returns the source's rows (B, C, last - first, W); it is asked for few more than are needed. All
    rows at once are exactly `resize`'s.
    """
    if size == target:
        return rows(top, bottom)
    if (top, bottom) == (0, target[0]):
        return resize(rows(0, size[0]), target)
    weights, first = _weights(size[0], target[0], top, bottom, shrinks=target[0] < size[0] or target[1] < size[1])
    source = rows(first, first + weights.shape[1])
    wide = resize(source, (source.shape[-2], target[1])) if target[1] != size[1] else source
    return torch.einsum("or,bcrw->bcow", weights.to(wide), wide)


class RowResizer:
    """`resized_rows` for a picture whose rows come from the top down, of which it keeps as few as it can.

    Args:
        size, target: (H, W) of the picture that comes and of the one that is wanted.
        first: the first wanted row.
    """

    def __init__(self, size: tuple[int, int], target: tuple[int, int], first: int = 0):
        self.size, self.target, self.finished = size, target, first
        self.ratio = size[0] / target[0]
        self.reach = int(2 * max(self.ratio, 1.0)) + 2  # rows around its place that a row looks at
        self.held: Tensor | None = None  # the picture's rows from `top` on
        self.top = self._first_needed()

    def _first_needed(self) -> int:
        return max(0, int(self.finished * self.ratio) - self.reach)

    def add(self, top: int, rows: Tensor) -> Tensor | None:
        """The picture's next rows (1, C, n, W), of which the first is number `top`. Gives the next rows of the result,
        (C, m, W) in [0, 1], or None where more are needed first."""
        self.top, held = (top, rows) if self.held is None else (self.top, torch.cat([self.held, rows], dim=-2))
        self.held, bottom = held, self.top + held.shape[-2]
        last = int((bottom - self.reach) / self.ratio) if bottom < self.size[0] else self.target[0]
        if last <= self.finished:
            return None
        result = resized_rows(rows_of(held, self.top), self.size, self.target, self.finished, last)
        self.finished = last
        self._drop()
        return result[0].clamp(0, 1)

    def _drop(self) -> None:
        """Rows that no row to come looks at."""
        first = self.size[0] if self.finished == self.target[0] else self._first_needed()
        if self.held is not None and first > self.top:
            self.held, self.top = self.held[:, :, first - self.top :].clone(), first


class WholeResizer:
    """`RowResizer` for a result that is wanted whole: exactly `resize` of the picture, once all rows are there."""

    top = 0

    def __init__(self, size: tuple[int, int], target: tuple[int, int]):
        self.size, self.target = size, target
        self.held: Tensor | None = None

    def add(self, top: int, rows: Tensor) -> Tensor | None:
        """The picture's next rows, as in `RowResizer.add`. Gives the whole result with the last of them."""
        count = rows.shape[-2]
        if count < self.size[0]:
            if self.held is None:
                self.held = rows.new_empty(*rows.shape[:2], *self.size)
            self.held[:, :, top : top + count] = rows
        if top + count < self.size[0]:
            return None
        return resize(rows if self.held is None else self.held, self.target)[0].clamp(0, 1)


def _weights(height: int, target: int, top: int, bottom: int, shrinks: bool) -> tuple[Tensor, int]:
    """Weight of each source row in each result row, (bottom - top, n), and the index of the first source row."""
    ratio = height / target
    stretch = max(ratio, 1.0) if shrinks else 1.0
    centres = (torch.arange(top, bottom, dtype=torch.float64) + 0.5) * ratio - 0.5
    first = math.floor(float(centres[0]) - 2 * stretch)
    last = math.ceil(float(centres[-1]) + 2 * stretch) + 1
    positions = torch.arange(first, last, dtype=torch.float64)
    weights = _cubic((positions[None] - centres[:, None]) / stretch, -0.5 if shrinks else -0.75)
    inside = weights[:, max(0, -first) : max(0, -first) + min(last, height) - max(first, 0)].clone()
    if shrinks:  # rows outside the picture have no weight
        return inside / inside.sum(dim=1, keepdim=True), max(first, 0)
    inside[:, 0] += weights[:, : max(0, -first)].sum(dim=1)  # rows outside the picture repeat the border row
    inside[:, -1] += weights[:, weights.shape[1] - max(0, last - height) :].sum(dim=1)
    return inside, max(first, 0)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel."""
    x = distance.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
