"""A photo's way: fit, encode, step tile by tile, decode, restore the size, match colours, alpha back on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import color as colors
from ..canvas.noise import canvas_noise
from ..canvas.resize import pad_to_multiple, resize, target_size
from ..canvas.tiling import Tile, plan
from ..errors import UserError
from .geometry import geometry, latent_tile, require_window
from .memory import is_out_of_memory, release_cached
from .model import Codec, Condition, SRModel
from .tiled_step import Canvas, Notice, ignored, step_canvas

Progress = Callable[[int, int, Tensor], None]
SMALLEST_TILE = 16  # latent pixels, below which a network sees too little


def upscale(
    model: SRModel,
    image: Tensor,
    scale: float = 4.0,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    color: colors.ColorMatch | None = None,
    seed: int = 0,
    batch: int | None = None,
    progress: Progress | None = None,
    notice: Notice = ignored,
) -> Tensor:
    """Enlarge pictures with one network evaluation a tile.

    A network with an own scale n (4 for ResShift's family) serves every other one too. For a scale s
    above n the picture is enlarged bicubically by s/n first; below n the network runs on the picture
    as it is and its result is shrunk: a picture shrunk before would lose what it has.

    Args:
        image: (B, 3 or 4, H, W) float32 in [0, 1], at least 8 px a side; a fourth channel is alpha,
            which is enlarged bicubically on its own.
        scale: 1 to 8; the result has exactly round(scale * side) px.
        tile, overlap: in pixels of the network's result; None takes the recipe's. The tile is rounded up
            to what the network takes; the overlap is at most half a tile.
        color: None takes the recipe's.
        seed: of the noise, for methods that start from noise. Every picture of a batch gets the same,
            so that a picture's result does not depend on its place.
        batch: how many tiles go through the network at once; None lets the denoiser choose. Where memory runs
            out the batch is halved, then the tile.
        progress: called after each tile with (tiles done, tiles in all, a rough picture (3, h, w) in
            [0, 1] that grows). Whatever it raises ends the run.
        notice: called with a sentence where the run goes on otherwise than asked.

    Returns:
        (B, 3 or 4, round(scale H), round(scale W)) float32 in [0, 1], on the image's device.

    Raises:
        UserError: for a size, scale, tile or overlap out of bounds, values that are not finite in the
            picture or from the network, or too little memory.
    """
    size = target_size(image.shape[-2], image.shape[-1], scale)
    if not torch.isfinite(image).all():
        raise UserError("The picture holds values that are not finite numbers (NaN or infinite): repair it first.")
    sides = latent_tile(model.recipe, model.codec.factor, tile, overlap)
    run = _Run(model, size, *sides, color or model.recipe.color, seed, batch, notice)
    # Channels last, so that a host that keeps pictures that way need not copy it.
    shape = (len(image), image.shape[1], *size)
    result = torch.empty(shape, device=image.device, memory_format=torch.channels_last)
    try:
        for index, picture in enumerate(image.split(1)):
            result[index, :3] = run(picture[:, :3], index, _for_picture(progress, index, len(image)))
            if image.shape[1] > 3:
                result[index, 3:] = resize(picture[:, 3:], size).clamp(0, 1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError("There is not enough memory for this: choose a smaller tile or a smaller scale.") from error
    return result


@dataclass(frozen=True)
class _Run:
    """One call's settings, applied to one picture at a time. Tile and overlap are in latent pixels."""

    model: SRModel
    size: tuple[int, int]
    tile: int
    overlap: int
    color: colors.ColorMatch
    seed: int
    batch: int | None
    notice: Notice

    def __call__(self, image: Tensor, index: int, progress: Progress | None) -> Tensor:
        recipe, codec = self.model.recipe, self.model.codec
        way = geometry(recipe, codec.factor, (image.shape[-2], image.shape[-1]), self.size)
        padded = pad_to_multiple(resize(image, way.lr), recipe.multiple * codec.factor // recipe.scale)
        height, width = way.padded
        latent = codec.encode(resize(padded, (height * recipe.scale, width * recipe.scale)))
        said = self.model.conditioner(image, index)
        latent = self._step(latent, padded * 2 - 1, said, progress, way.shown)
        result = codec.decode(latent)[..., : way.network[0], : way.network[1]]
        if not torch.isfinite(result).all():
            raise UserError("The autoencoder gave values that are not finite: run it in float32.")
        result = resize(result.clamp(0, 1), self.size).clamp(0, 1)
        return colors.match(result, image, self.color).clamp(0, 1)

    def _step(
        self, latent: Tensor, condition: Tensor, said: Condition, progress: Progress | None, shown: tuple[int, int]
    ) -> Tensor:
        """`shown` is what of the latent canvas is picture and not padding: all that previews hold.

        Where memory runs out on a single tile, all is done again with tiles of half the side.
        """
        recipe, factor = self.model.recipe, self.model.codec.factor
        canvas = Canvas(latent, canvas_noise(latent, self.seed), condition)
        tile, overlap = self.tile, self.overlap
        while True:
            tiles = plan(latent.shape[-2], latent.shape[-1], tile, overlap)
            require_window(recipe, factor, (tiles.rows.size, tiles.columns.size))
            show = _Preview(self.model.codec, latent, len(tiles), shown, progress)
            try:
                return step_canvas(
                    self.model, canvas, list(tiles), condition=said, batch=self.batch, done=show, notice=self.notice
                )
            except (MemoryError, RuntimeError) as error:
                tile = tile // 2 // recipe.multiple * recipe.multiple
                if not is_out_of_memory(error) or tile < SMALLEST_TILE:
                    raise
            self.notice(f"Memory ran out: tiles of {tile * factor} px do the rest of this run.")
            overlap = min(overlap, tile // 2)
            release_cached()


class _Preview:
    """The growing picture, and the count of finished tiles."""

    def __init__(self, codec: Codec, latent: Tensor, total: int, shown: tuple[int, int], progress: Progress | None):
        self.codec, self.total, self.shown, self.progress = codec, total, shown, progress
        self.picture = codec.preview(latent)
        self.done = 0

    def __call__(self, tile: Tile, piece: Tensor) -> None:
        self.done += 1
        if self.progress is not None:
            tile.cut(self.picture).copy_(self.codec.preview(piece))
            self.progress(self.done, self.total, self.picture[0, :, : self.shown[0], : self.shown[1]])


def _for_picture(progress: Progress | None, index: int, count: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total, preview: progress(index * total + done, count * total, preview)
