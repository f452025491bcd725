"""Estimates a run's size, tiles and memory before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from ..canvas.resize import target_size
from ..canvas.tiling import window_count
from .geometry import Size, geometry
from .model import SRModel
from .options import UpscaleOptions
from .recipe import Recipe
from .tile_policy import TilePolicy

BYTES_PER_PIXEL = 64  # per pixel of the network's result, in all of `upscale`; measured with the bundled model


@dataclass(frozen=True)
class Forecast:
    """Attributes:
    result: (height, width) of the result.
    tile: (height, width) of a tile, in pixels of the network's result.
    rows, columns: number of tiles.
    work: latent pixels that the network processes: the number of tiles times their area. Time is proportional to it.
    memory: peak bytes of main memory for pictures and latents, without weights.
    """

    result: Size
    tile: Size
    rows: int
    columns: int
    work: int
    memory: int


def forecast(recipe: Recipe, factor: int, image: Size, options: UpscaleOptions) -> Forecast:
    """Estimate the run for one picture of size `image` (height, width); `factor` is the codec's.

    Raises UserError for the same sizes and options as `upscale`.
    """
    way = geometry(recipe, factor, image, target_size(*image, options.scale))
    tile, overlap = TilePolicy().side_and_overlap(way.latent, recipe, factor, options)
    height, width = min(tile, way.latent[0]), min(tile, way.latent[1])
    rows, columns = (window_count(side, tile, overlap) for side in way.latent)
    return Forecast(
        way.result,
        (height * factor, width * factor),
        rows,
        columns,
        work=rows * columns * height * width,
        memory=memory_of(recipe, way.result, options.scale),
    )


def memory_of(recipe: Recipe, result: Size, scale: float) -> int:
    """Peak bytes of main memory for a result of this size."""
    enlarged = max(1.0, recipe.scale / scale) ** 2
    return round(result[0] * result[1] * enlarged * BYTES_PER_PIXEL)


def workspace(model: SRModel, image: Size, options: UpscaleOptions) -> int:
    """Bytes that should be free on the model's device to upscale pictures of this size one by one, beside the weights.

    Raises UserError for the same sizes and options as `upscale`.
    """
    recipe, codec = model.recipe, model.codec
    canvas = geometry(recipe, codec.factor, image, target_size(*image, options.scale)).latent
    tile, _ = TilePolicy().side_and_overlap(canvas, recipe, codec.factor, options)
    network = model.denoiser.memory((1, codec.latent_channels, min(tile, canvas[0]), min(tile, canvas[1])))
    return max(network, codec.memory(canvas[0] * codec.factor, canvas[1] * codec.factor))
