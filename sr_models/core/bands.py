"""Process a canvas from top to bottom: the next rows of tiles, and the finished rows that their latents complete.

A band is the part of the canvas that is processed at once: one or more rows of tiles, or the whole canvas. Sizes and
rows are in latent pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..canvas.tiling import Plan, Tile
from .geometry import Size


@dataclass(frozen=True)
class Band:
    """Rows [top, bottom) of the canvas.

    Attributes:
        tiles: the band's tiles, in its own coordinates.
        finished: after this band, all rows of the canvas above this one are complete.
        before, total: how many tiles of the canvas come before this band, and how many there are in total.
    """

    top: int
    bottom: int
    tiles: list[Tile]
    finished: int
    before: int
    total: int


class Bands:
    """The bands of a canvas, blended where they overlap.

    Args:
        canvas: (height, width).
        plan: returns the tiles of a canvas of any size.
        multiple: the canvas's sides are multiples of this; sizes passed to `plan` must be too.
        at_once: a band has as many rows of tiles as fit into this many latent pixels, but at least one.
        first: rows above this one are not needed.
    """

    def __init__(self, canvas: Size, plan: Callable[[Size], Plan], multiple: int, *, at_once: int, first: int = 0):
        self.canvas, self.plan_of, self.multiple, self.at_once = canvas, plan, multiple, at_once
        self.finished = first  # rows above this one were returned
        self.plan, self.offset = plan(canvas), 0  # the plan covers the canvas from row `offset`
        rows = self.plan.rows
        self.row = next(i for i, top in enumerate(rows.starts) if top + rows.size > first)  # the next row of tiles
        self.before = self.row * len(self.plan.columns.starts)
        self.shared: Tensor | None = None  # contribution of earlier bands to the rows from `finished`
        self.room = torch.ones(canvas[0])  # the weight of the current plan's tiles in each row

    @property
    def left(self) -> bool:
        return self.row < len(self.plan.rows.starts)

    def next(self) -> Band:
        """The next band to process; it stays the same until `join` is called with it."""
        rows, end = self.plan.rows, self._end()
        top, bottom = rows.starts[self.row], rows.starts[end - 1] + rows.size
        tiles = [self._placed(tile, top) for row in range(self.row, end) for tile in self.plan.row(row)]
        following = rows.starts[end] if end < len(rows.starts) else rows.length
        total = self.before + (len(rows.starts) - self.row) * len(self.plan.columns.starts)
        finished = max(self.finished, self.offset + following)
        return Band(self.offset + top, self.offset + bottom, tiles, finished, self.before, total)

    def _end(self) -> int:
        """The first row of tiles below the next band."""
        rows, end = self.plan.rows, self.row + 1
        top, most = rows.starts[self.row], self.at_once // self.canvas[1]
        while end < len(rows.starts) and rows.starts[end] + rows.size - top <= most:
            end += 1
        return end

    def _placed(self, tile: Tile, top: int) -> Tile:
        room = self.room[self.offset + tile.top : self.offset + tile.bottom]
        return replace(tile, top=tile.top - top, bottom=tile.bottom - top, weight=tile.weight * room[:, None])

    def join(self, band: Band, latent: Tensor) -> tuple[int, Tensor]:
        """Add a band's weighted latents (1, c, n, w). Returns the index of the first newly finished row, and those rows
        (1, c, m, w), which may be none."""
        first, fresh = self.finished, latent[:, :, self.finished - band.top :]
        if self.shared is not None:
            count = self.shared.shape[-2]
            fresh = F.pad(
                fresh, (0, 0, 0, max(0, count - fresh.shape[-2]))
            )  # new tiles may be smaller than earlier ones
            fresh[:, :, :count] += self.shared
        self.shared = fresh[:, :, band.finished - first :].clone()
        self.finished = band.finished
        self.before += len(band.tiles)
        self.row += len(band.tiles) // len(self.plan.columns.starts)
        return first, fresh[:, :, : band.finished - first]

    def replan(self) -> None:
        """Divide the unfinished rows into new tiles. Where finished bands overlap them, the new tiles get the weight
        that the old plan's next tiles would have had, so that old and new tiles blend like neighbours."""
        rows, top = self.plan.rows, self.offset + self.plan.rows.starts[self.row]
        self.room[top : top + rows.size] *= rows.share_from(self.row)
        self.offset = self.finished // self.multiple * self.multiple
        self.plan, self.row = self.plan_of((self.canvas[0] - self.offset, self.canvas[1])), 0
