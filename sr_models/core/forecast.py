"""Estimates a run before it starts: sizes, tiles, memory."""

from __future__ import annotations

from dataclasses import dataclass

from ..canvas.resize import target_size
from .geometry import Size, geometry
from .options import UpscaleOptions
from .recipe import Recipe
from .tile_policy import TilePolicy

BYTES_PER_PIXEL = 64  # of the network's result, for all of `upscale`: measured on the bundled model


@dataclass(frozen=True)
class Forecast:
    """Attributes:
    result: (height, width) of the picture asked for.
    tile: (height, width) of a tile, in pixels of the network's result.
    rows, columns: how many tiles.
    work: latent pixels that go through the network, tiles times their area: what time is proportional to.
    memory: bytes of main memory that pictures and latents take at a run's peak, without weights.
    """

    result: Size
    tile: Size
    rows: int
    columns: int
    work: int
    memory: int


def forecast(recipe: Recipe, factor: int, image: Size, options: UpscaleOptions) -> Forecast:
    """For one picture of size `image` (height, width); `factor` is the codec's.

    Raises UserError where `upscale` would for these sizes.
    """
    way = geometry(recipe, factor, image, target_size(*image, options.scale))
    tiles = TilePolicy().plan(way.latent, recipe, factor, options)
    window = (tiles.rows.size, tiles.columns.size)
    return Forecast(
        way.result,
        (window[0] * factor, window[1] * factor),
        len(tiles.rows.starts),
        len(tiles.columns.starts),
        work=len(tiles) * window[0] * window[1],
        memory=memory_of(recipe, way.result, options.scale),
    )


def memory_of(recipe: Recipe, result: Size, scale: float) -> int:
    """Bytes of main memory that a result of this size takes at the peak."""
    enlarged = max(1.0, recipe.scale / scale) ** 2
    return round(result[0] * result[1] * enlarged * BYTES_PER_PIXEL)
