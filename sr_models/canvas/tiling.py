"""Windows on a large canvas, and weights that blend them without seams.

A plan is two axes, each a list of window starts. All windows have the same size, are evenly spaced, and overlap
by at least the requested amount. Weights are separable and sum to 1 at every pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError


@dataclass(frozen=True)
class Axis:
    """Windows [start, start + size) for each start; together they cover [0, length)."""

    length: int
    size: int
    starts: tuple[int, ...]

    def weight(self, index: int) -> Tensor:
        """Blend weight of a window along the axis, (size,): the rise into it minus the rise into the next window.

        Each rise goes smoothly from 0 to 1 over the overlap of two neighbours, so the sum telescopes to 1.
        """
        share = self.share_from(index)
        return share - self._rise(index + 1, index) if index + 1 < len(self.starts) else share

    def share_from(self, index: int) -> Tensor:
        """What a window and all after it weigh together, on the window's own pixels: (size,)."""
        return self._rise(index, index) if index > 0 else torch.ones(self.size)

    def _rise(self, into: int, seen_from: int) -> Tensor:
        begin, end = self.starts[into], self.starts[into - 1] + self.size
        pixels = torch.arange(self.size) + self.starts[seen_from] + 0.5
        share = ((pixels - begin) / (end - begin)).clamp(0, 1)
        return share * share * (3 - 2 * share)


@dataclass(frozen=True)
class Tile:
    """One window of a plan: rows [top, bottom), columns [left, right), and its weight (height, width)."""

    top: int
    bottom: int
    left: int
    right: int
    weight: Tensor

    @property
    def size(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    def cut(self, canvas: Tensor, factor: int = 1) -> Tensor:
        """The window's part of a (..., H, W) canvas with `factor` times the plan's resolution."""
        rows = slice(self.top * factor, self.bottom * factor)
        return canvas[..., rows, self.left * factor : self.right * factor]


@dataclass(frozen=True)
class Plan:
    rows: Axis
    columns: Axis

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    def __iter__(self) -> Iterator[Tile]:
        for index in range(len(self.rows.starts)):
            yield from self.row(index)

    def row(self, index: int) -> Iterator[Tile]:
        """The tiles side by side in one row."""
        top, down = self.rows.starts[index], self.rows.weight(index)
        for j, left in enumerate(self.columns.starts):
            weight = down[:, None] * self.columns.weight(j)[None, :]
            yield Tile(top, top + self.rows.size, left, left + self.columns.size, weight)


def plan(height: int, width: int, tile: int, overlap: int) -> Plan:
    """Windows of side `tile` (or the canvas's side if that is smaller) that overlap by at least `overlap`.

    Raises UserError unless 0 <= overlap <= tile / 2.
    """
    if not 0 <= overlap <= tile // 2:
        raise UserError(f"Overlap {overlap} does not fit tile {tile}: choose one from 0 to {tile // 2}.")
    return Plan(plan_axis(height, tile, overlap), plan_axis(width, tile, overlap))


def plan_axis(length: int, tile: int, overlap: int) -> Axis:
    """The fewest windows that overlap by at least `overlap`, with starts evenly spaced over [0, length - size]."""
    size, last = min(length, tile), window_count(length, tile, overlap) - 1
    return Axis(length, size, tuple(i * (length - size) // max(1, last) for i in range(last + 1)))


def window_count(length: int, tile: int, overlap: int) -> int:
    """The number of windows in `plan_axis`, without creating them."""
    return 1 + max(0, -(-(length - tile) // (tile - overlap)))
