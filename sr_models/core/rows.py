"""From a picture to the rows of its result: fit, encode, step tile by tile, decode, restore the size.

The canvas goes through in bands (see `Bands`). One band for everything is the quickest; a row of tiles at a time
needs memory for a few rows only, and serves pictures whose result does not fit in memory. Colours and alpha come
after (`finish`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..canvas.color import require_known
from ..canvas.noise import canvas_noise
from ..canvas.resample_rows import RowResizer
from ..canvas.resize import pad_to_multiple, resize, target_size
from ..canvas.tiling import Tile
from ..errors import UserError
from .bands import Band, Bands
from .geometry import Size, geometry
from .memory import is_out_of_memory, release_cached
from .model import Condition, Denoiser, Pass, SRModel
from .options import UpscaleOptions
from .report import Notice, Progress, Report, ignored
from .tile_policy import TilePolicy
from .tiled_step import Canvas, step_tiles

BICUBIC_REACH = 2


@dataclass(frozen=True)
class Run:
    """What all pictures of a run share; see `upscale`."""

    model: SRModel
    options: UpscaleOptions
    policy: TilePolicy
    progress: Progress | None = None
    notice: Notice = ignored


def result_size(image: Tensor, options: UpscaleOptions) -> Size:
    """(height, width) of the result of pictures (B, C, H, W). Raises UserError for what cannot be upscaled."""
    size = target_size(image.shape[-2], image.shape[-1], options.scale)
    if options.color is not None:
        require_known(options.color)
    if not torch.isfinite(image).all():
        raise UserError("The picture holds values that are not finite numbers (NaN or infinite): repair it first.")
    return size


def result_rows(run: Run, image: Tensor, *, index: int = 0, banded: bool = False, first: int = 0) -> Iterator[Tensor]:
    """The result's rows before any colour match, from the top down: (3, n, W) in [0, 1].

    Args:
        image: (1, 3, H, W) in [0, 1], number `index` of its batch.
        banded: a row of tiles at a time, for codecs that are local; without, all rows come at once.
        first: the first row that is wanted.

    Raises:
        UserError: for a scale, size, tile or overlap out of bounds, or values that are not finite.
        MemoryError, RuntimeError: where there is not enough memory for the smallest tile.
    """
    model, recipe, codec = run.model, run.model.recipe, run.model.codec
    source = Source(model, image, run.options)
    condition = model.conditioner(image, index)
    whole = not (banded and codec.is_local)
    resizer = RowResizer(source.way.network, source.way.result, first)
    plan = partial(run.policy.plan, recipe=recipe, factor=codec.factor, options=run.options, notice=run.notice)
    first_band = 0 if whole else resizer.top // codec.factor
    bands = Bands(source.way.latent, plan, recipe.multiple, whole=whole, first=first_band)
    report = Report(codec, source.way.shown, run.progress, run.notice)
    while bands.left:
        band = bands.next()
        latent = _step_band(run, source, band, condition, report)
        if latent is None:
            bands.replan()
            continue
        rows = resizer.add(*source.decoded(*bands.join(band, latent)))
        if rows is not None:
            yield rows
    report.end(model.denoiser.dtype)


def _step_band(run: Run, source: Source, band: Band, condition: Condition, report: Report) -> Tensor | None:
    """The band's tiles, stepped and weighted: (1, c, n, w). None where memory ran out on a single tile, of which the
    run's policy then knows. Raises UserError where values are not finite in float32 either."""
    canvas, window, passes = source.canvas(band.top, band.bottom), band.tiles[0].size, run.model.all_passes()
    report.begin(band, canvas.latent, len(passes))
    result, policy = torch.zeros_like(canvas.latent), run.policy
    work, shape = partial(step_tiles, canvas=canvas, result=result, policy=policy), (1, canvas.latent.shape[1], *window)
    try:
        for one, denoiser, tiles in _attempts(passes, band.tiles):
            batch = policy.at_once(min(len(tiles), run.options.batch or denoiser.tiles_at_once(shape)), window)
            keep_going = denoiser.dtype != torch.float32  # in float32 there is no rescue for what is not finite
            done = report.tile if one is passes[0] else report.count  # only these look like a picture
            attempt = partial(work, step=one.step, tiles=list(tiles), batch=batch, keep_going=keep_going, done=done)
            failed = denoiser.run(attempt, (batch, *shape[1:]), condition)
            report.overflowed += 0 if failed or denoiser is one.denoiser else len(tiles)
            tiles[:] = failed
        return result
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    release_cached()  # outside of the handler, which would keep the failed run's tensors alive
    policy.ran_out(window[0] * window[1])
    return None


def _attempts(passes: Sequence[Pass], tiles: Sequence[Tile]) -> Iterator[tuple[Pass, Denoiser, list[Tile]]]:
    """Each pass, its denoiser, and the tiles to run, of which the caller leaves those that failed: for them the same
    denoiser follows in float32. Raises UserError where values are not finite in float32 either."""
    for one in passes:
        left = list(tiles)
        yield one, one.denoiser, left
        if left and one.denoiser.dtype != torch.float32:
            yield one, one.denoiser.in_float32(), left
        if left:
            raise UserError("The network gave values that are not finite: run it in float32.")


class Source:
    """A picture (1, 3, H, W) as the model sees it, of which any rows can be asked for."""

    def __init__(self, model: SRModel, image: Tensor, options: UpscaleOptions):
        recipe, size = model.recipe, (image.shape[-2], image.shape[-1])
        self.model, self.seed = model, options.seed
        self.way = geometry(recipe, model.codec.factor, size, target_size(*size, options.scale))
        self.pixels = model.codec.factor // recipe.scale  # LR pixels per latent pixel
        self.padded = pad_to_multiple(resize(image, self.way.lr), recipe.multiple * self.pixels)

    def canvas(self, top: int, bottom: int) -> Canvas:
        """What the latent rows [top, bottom) are stepped from."""
        first, last = top * self.pixels, bottom * self.pixels
        latent = self.model.codec.encode(self._enlarged(first, last))
        noise = canvas_noise(latent, self.seed, top) if self.model.recipe.step.needs_noise else None
        return Canvas(latent, noise, self.padded[:, :, first:last] * 2 - 1)

    def _enlarged(self, first: int, last: int) -> Tensor:
        """The LR rows [first, last), enlarged to the size that the network gives them."""
        scale, above = self.model.recipe.scale, min(BICUBIC_REACH, first)
        rows = self.padded[:, :, first - above : last + BICUBIC_REACH]
        enlarged = resize(rows, (rows.shape[-2] * scale, rows.shape[-1] * scale))
        return enlarged[:, :, above * scale : (above + last - first) * scale]

    def decoded(self, top: int, latent: Tensor) -> tuple[int, Tensor]:
        """The network's result (1, 3, n, W) in [0, 1] for the latent rows from `top` on, without padding, and the
        number of its first row."""
        height, width = self.way.network
        first = min(top * self.model.codec.factor, height)
        if latent.shape[-2] == 0:
            return first, latent.new_zeros(1, 3, 0, width)
        rows = self.model.codec.decode(latent)[:, :, : height - first, :width]
        if not torch.isfinite(rows).all():
            raise UserError("The autoencoder gave values that are not finite: run it in float32.")
        return first, rows.clamp(0, 1)
