"""How large tiles are and how many go through the network at once, kept for a whole run."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ..canvas.tiling import Plan, plan
from .geometry import Size, latent_tile, require_window
from .options import UpscaleOptions
from .recipe import Recipe
from .report import Notice, ignored

SMALLEST_TILE = 16  # latent pixels; in smaller tiles a network sees too little


@dataclass
class TilePolicy:
    """The limits that a run has met so far; a run is one picture, a batch, or all files of a folder.

    After memory ran out with n latent pixels at once, the rest of the run uses at most n / 2: fewer tiles at once
    first, then smaller tiles.

    Attributes:
        most: latent pixels that may go through the network at once.
        tile: the largest tile side, in latent pixels.
    """

    most: int = sys.maxsize
    tile: int = sys.maxsize

    def ran_out(self, pixels: int) -> None:
        """Memory was too small for this many latent pixels at once."""
        self.most = min(self.most, pixels // 2)

    def at_once(self, batch: int, window: Size) -> int:
        """How many windows go through the network at once where `batch` are asked for; at least one."""
        return max(1, min(batch, self.most // (window[0] * window[1])))

    def plan(
        self, canvas: Size, recipe: Recipe, factor: int, options: UpscaleOptions, notice: Notice = ignored
    ) -> Plan:
        """The tiles of a canvas (latent pixels); `factor` is the codec's. `notice` is told when tiles get smaller.

        Raises:
            UserError: for a tile or overlap that does not fit the recipe.
            MemoryError: where memory was too small for the smallest tile.
        """
        asked, overlap = latent_tile(recipe, factor, options.tile, options.overlap)
        require_window(recipe, factor, (min(asked, canvas[0]), min(asked, canvas[1])))
        tile = self._largest(min(asked, self.tile), canvas, recipe.multiple)
        if tile < min(asked, self.tile):
            self.tile = tile
            notice(f"Memory ran out: the rest of this run uses tiles of {tile * factor} px.")
        return plan(*canvas, tile, min(overlap, tile // 2))

    def _largest(self, tile: int, canvas: Size, multiple: int) -> int:
        """The tile, halved until one fits."""
        while min(tile, canvas[0]) * min(tile, canvas[1]) > self.most:
            tile = tile // 2 // multiple * multiple
            if tile < SMALLEST_TILE:
                raise MemoryError("Memory was too small for the smallest tile.")
        return tile
