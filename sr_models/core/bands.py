"""A canvas from the top down: which rows of tiles come next, and how their latents become finished rows.

A band is what is stepped at once: the whole canvas, or one row of tiles. Sizes and rows are in latent pixels.
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
        tiles: in the band's own coordinates.
        finished: rows of the canvas above this one need no later band.
        before, total: how many tiles of the canvas come before the band's, and how many there are in all.
    """

    top: int
    bottom: int
    tiles: list[Tile]
    finished: int
    before: int
    total: int


class Bands:
    """The bands of a canvas, blended where they share rows.

    Args:
        canvas: its (height, width).
        plan: gives the tiles of a canvas of any size.
        multiple: the canvas's sides are multiples of this, and what `plan` gets has to be too.
        whole: one band for the whole canvas.
        first: rows above this one are not wanted.
    """

    def __init__(self, canvas: Size, plan: Callable[[Size], Plan], multiple: int, *, whole: bool, first: int = 0):
        self.canvas, self.plan_of, self.multiple, self.whole = canvas, plan, multiple, whole
        self.finished = first  # rows above it were given out
        self.plan, self.offset = plan(canvas), 0  # of the canvas from row `offset` on
        rows = self.plan.rows
        self.row = next(i for i, top in enumerate(rows.starts) if top + rows.size > first)  # of tiles, the next one
        self.before = self.row * len(self.plan.columns.starts)
        self.shared: Tensor | None = None  # what the bands so far add to the rows from `finished` on
        self.room = torch.ones(canvas[0])  # what share of each row the plan's tiles get

    @property
    def left(self) -> bool:
        return self.row < len(self.plan.rows.starts)

    def next(self) -> Band:
        """The band to step now; the same again until it is joined."""
        rows, end = self.plan.rows, len(self.plan.rows.starts) if self.whole else self.row + 1
        top, bottom = rows.starts[self.row], rows.starts[end - 1] + rows.size
        tiles = [self._placed(tile, top) for row in range(self.row, end) for tile in self.plan.row(row)]
        following = rows.starts[end] if end < len(rows.starts) else rows.length
        total = self.before + (len(rows.starts) - self.row) * len(self.plan.columns.starts)
        finished = max(self.finished, self.offset + following)
        return Band(self.offset + top, self.offset + bottom, tiles, finished, self.before, total)

    def _placed(self, tile: Tile, top: int) -> Tile:
        room = self.room[self.offset + tile.top : self.offset + tile.bottom]
        return replace(tile, top=tile.top - top, bottom=tile.bottom - top, weight=tile.weight * room[:, None])

    def join(self, band: Band, latent: Tensor) -> tuple[int, Tensor]:
        """Add a band's weighted latents (1, c, n, w). Returns the first row that is finished now, and
        the rows; there may be none."""
        first, fresh = self.finished, latent[:, :, self.finished - band.top :]
        if self.shared is not None:
            count = self.shared.shape[-2]
            fresh = F.pad(fresh, (0, 0, 0, max(0, count - fresh.shape[-2])))  # tiles may be smaller than those before
            fresh[:, :, :count] += self.shared
        self.shared = fresh[:, :, band.finished - first :].clone()
        self.finished = band.finished
        self.before += len(band.tiles)
        self.row += len(band.tiles) // len(self.plan.columns.starts)
        return first, fresh[:, :, : band.finished - first]

    def replan(self) -> None:
        """Plan the unfinished rows anew, into other tiles. Where finished bands reach into them, the new tiles get the
        share that the old plan's next ones would have had, so that old and new blend like neighbours."""
        rows, top = self.plan.rows, self.offset + self.plan.rows.starts[self.row]
        self.room[top : top + rows.size] *= rows.share_from(self.row)
        self.offset = self.finished // self.multiple * self.multiple
        self.plan, self.row = self.plan_of((self.canvas[0] - self.offset, self.canvas[1])), 0
