"""Estimates a run's size, tiles and memory before it starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from ..canvas.tiling import window_count
from .geometry import Size, geometry
from .memory import SHARE, SMALLEST_BUDGET, available
from .model import SRModel
from .options import UpscaleOptions
from .recipe import Recipe
from .tile_policy import TilePolicy

BYTES_PER_PIXEL = 64  # per pixel of the network's result, in all of `upscale`; measured with the bundled model
COPIES = 6  # of a row of tiles in float32, where a result goes through a file; measured with the bundled model
HELD_PER_PIXEL = 16  # of a finished result, which waits for the rest of its batch: four channels in float32
GIGABYTE = 1e9
MAIN, GPU = "main memory", "GPU memory"
ADVICE = {MAIN: "choose a smaller size or fewer images", GPU: "choose a smaller tile"}
Level = Literal["fits", "tight", "too little"]
LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True)
class Forecast:
    """Attributes:
    result: (height, width) of the result.
    tile: (height, width) of a tile, in pixels of the network's result; (0, 0) if the picture is only shrunk.
    rows, columns: number of tiles.
    work: latent pixels that the network processes: the number of tiles times their area. Time is proportional to it.
    memory: peak bytes of main memory for pictures and latents, without weights.
    network: bytes on the device for one tile in float32, without weights; 0 if unknown.
    weights: number of weights.
    mapped: number of values in an autoencoder's feature maps that exist at once.
    """

    result: Size
    tile: Size
    rows: int
    columns: int
    work: int
    memory: int
    network: int = 0
    weights: int = 0
    mapped: int = 0

    def memory_of_batch(self, images: int) -> int:
        """Peak bytes of main memory for a batch of images of this size."""
        return self.memory + (images - 1) * HELD_PER_PIXEL * self.result[0] * self.result[1]


@dataclass(frozen=True)
class Need:
    """Bytes of one kind of memory that a run needs, and that are free.

    movable: the part of `needed` that may be in main memory, where it makes the run slower.
    """

    kind: str
    needed: int
    free: int
    movable: int = 0

    @property
    def level(self) -> Level:
        """Whether the run fits easily, only if other programs make room or a part moves, or not at all."""
        if self.needed <= SHARE * self.free:
            return "fits"
        return "tight" if self.needed - self.movable <= self.free else "too little"

    def __str__(self) -> str:
        words = f"{amount_of(self.needed)} of {self.kind}"
        if self.level == "fits":
            return words
        advice = "close other programs" if self.level == "tight" else ADVICE[self.kind]
        if self.level == "tight" and self.needed > self.free:
            advice = "a part will be in main memory, which is slower"
        return f"{words}, of which {amount_of(self.free)} are free: {advice}"


def needs(
    run: Forecast, images: int, device: torch.device, free: Callable[[torch.device], int] = available
) -> list[Need]:
    """What a run on a batch of images needs; a network of unknown size is not counted.

    On a CPU, weights are in float32 and an autoencoder's feature maps in files if they do not fit. On a GPU, both are
    in half precision, and the maps are in main memory if they do not fit beside the weights. `free` tells the free
    bytes of a device.
    """
    cpu, pictures = torch.device("cpu"), run.memory_of_batch(images)
    if device.type == "cpu":
        return [Need(MAIN, pictures + run.network + run.weights * torch.float32.itemsize, free(cpu))]
    if not run.network:
        return [Need(MAIN, pictures, free(cpu))]
    weights, maps = (count * torch.float16.itemsize for count in (run.weights, run.mapped))
    left = free(device)
    work = max(run.network, min(maps, SMALLEST_BUDGET))
    outside = max(0, maps - max(0, int(SHARE * (left - weights))))
    return [Need(MAIN, pictures + outside, free(cpu)), Need(GPU, weights + work, left, movable=weights)]


def amount_of(memory: int) -> str:
    """Bytes in words."""
    return f"{memory / 1e6:.0f} MB" if memory < GIGABYTE else f"{memory / GIGABYTE:.1f} GB"


def forecast(recipe: Recipe, factor: int, image: Size, options: UpscaleOptions) -> Forecast:
    """Estimate the run for one picture of size `image` (height, width); `factor` is the codec's.

    Raises UserError for the same sizes and options as `upscale`.
    """
    size = options.size(*image)
    if options.only_shrinks(*image):
        return Forecast(size, (0, 0), 0, 0, work=0, memory=memory_of(recipe, size, image))
    continued, options = options.continued(*image)
    way = geometry(recipe, factor, continued.whole, continued.whole_result)
    tile, overlap = TilePolicy().side_and_overlap(way.latent, recipe, factor, options)
    height, width = min(tile, way.latent[0]), min(tile, way.latent[1])
    rows, columns = (window_count(side, tile, overlap) for side in way.latent)
    return Forecast(
        size,
        (height * factor, width * factor),
        rows,
        columns,
        work=rows * columns * height * width,
        memory=memory_of(recipe, continued.whole_result, continued.whole),
        network=height * width * recipe.footprint.per_pixel * torch.float32.itemsize,
        weights=recipe.footprint.weights,
        mapped=way.latent[0] * way.latent[1] * factor**2 * recipe.footprint.mapped,
    )


def memory_of(recipe: Recipe, result: Size, image: Size) -> int:
    """Peak bytes of main memory for a result of this size, from a picture of size `image`."""
    if result[0] < image[0]:
        return image[0] * image[1] * BYTES_PER_PIXEL
    enlarged = max(1.0, recipe.scale * image[0] / result[0]) ** 2
    return round(result[0] * result[1] * enlarged * BYTES_PER_PIXEL)


def memory_by_rows(model: SRModel, image: Size, options: UpscaleOptions) -> int:
    """Peak bytes of main memory for a picture of size `image` whose result goes through a file by rows of tiles.

    Raises UserError for the same sizes and options as `upscale`.
    """
    recipe, factor = model.recipe, model.codec.factor
    if options.only_shrinks(*image):
        return memory_of(recipe, options.size(*image), image)
    continued, options = options.continued(*image)
    way = geometry(recipe, factor, continued.whole, continued.whole_result)
    tile, _ = TilePolicy().side_and_overlap(way.latent, recipe, factor, options)
    row = min(tile, way.latent[0]) * way.latent[1] * factor**2
    return (way.padded[0] * way.padded[1] + COPIES * row) * 3 * torch.float32.itemsize


def workspace(model: SRModel, image: Size, options: UpscaleOptions) -> int:
    """Bytes that should be free on the model's device to upscale pictures of this size one by one, beside the weights.

    Raises UserError for the same sizes and options as `upscale`.
    """
    recipe, codec = model.recipe, model.codec
    if options.only_shrinks(*image):
        return 0
    continued, options = options.continued(*image)
    canvas = geometry(recipe, codec.factor, continued.whole, continued.whole_result).latent
    tile, _ = TilePolicy().side_and_overlap(canvas, recipe, codec.factor, options)
    network = model.denoiser.memory((1, codec.latent_channels, min(tile, canvas[0]), min(tile, canvas[1])))
    return max(network, codec.memory(canvas[0] * codec.factor, canvas[1] * codec.factor))
