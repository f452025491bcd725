"""The size of tiles and how many the network processes at once, for a whole run."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ..canvas.tiling import Plan, plan
from .geometry import Size, latent_tile, require_window
from .options import UpscaleOptions
from .recipe import Recipe
from .report import Notice, ignored

SMALLEST_TILE = 16  # latent pixels; smaller tiles contain too little context for a network


@dataclass
class TilePolicy:
    """The memory limits that a run has reached so far. A run is one picture, a batch, or all files of a folder.

    After memory runs out with n latent pixels at once, the rest of the run uses at most n / 2: first fewer tiles at
    once, then smaller tiles.

    Attributes:
        most: how many latent pixels the network may process at once.
        tile: the largest tile side, in latent pixels.
    """

    most: int = sys.maxsize
    tile: int = sys.maxsize

    def ran_out(self, pixels: int) -> None:
        """Lower the limit after memory ran out with this many latent pixels at once."""
        self.most = min(self.most, pixels // 2)

    def at_once(self, batch: int, window: Size) -> int:
        """How many tiles of size `window` the network processes at once: up to `batch`, at least one."""
        return max(1, min(batch, self.most // (window[0] * window[1])))

    def plan(
        self, canvas: Size, recipe: Recipe, factor: int, options: UpscaleOptions, notice: Notice = ignored
    ) -> Plan:
        """The tiles of a canvas (latent pixels); `factor` is the codec's. `notice` is called if tiles become smaller.

        Raises UserError and MemoryError as `side_and_overlap` does.
        """
        return plan(*canvas, *self.side_and_overlap(canvas, recipe, factor, options, notice))

    def side_and_overlap(
        self, canvas: Size, recipe: Recipe, factor: int, options: UpscaleOptions, notice: Notice = ignored
    ) -> tuple[int, int]:
        """Side and overlap of the tiles that `plan` returns, in latent pixels.

        Raises:
            UserError: if the tile or overlap does not suit the recipe.
            MemoryError: if memory is too small for the smallest tile.
        """
        asked, overlap = latent_tile(recipe, factor, options.tile, options.overlap)
        require_window(recipe, factor, (min(asked, canvas[0]), min(asked, canvas[1])))
        tile = self._largest(min(asked, self.tile), canvas, recipe.multiple)
        if tile < min(asked, self.tile):
            self.tile = tile
            notice(f"Memory ran out: the rest of this run uses tiles of {tile * factor} px.")
        return tile, min(overlap, tile // 2)

    def _largest(self, tile: int, canvas: Size, multiple: int) -> int:
        """The tile side, halved until a tile is within the limit."""
        while min(tile, canvas[0]) * min(tile, canvas[1]) > self.most:
            tile = tile // 2 // multiple * multiple
            if tile < SMALLEST_TILE:
                raise MemoryError("There is not enough memory for the smallest tile.")
        return tile
