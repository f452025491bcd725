"""From a picture to the rows of its result: fit, encode, step tile by tile, decode, restore the size.

The canvas goes through in bands (see `Bands`), so that the first tile of a large picture need not wait for the last.
A row of tiles at a time needs memory for a few rows only, and serves pictures whose result does not fit in memory.
Colours and alpha come after (`finish`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..canvas.color import require_known
from ..canvas.noise import canvas_noise
from ..canvas.resample_rows import RowResizer, WholeResizer
from ..canvas.resize import pad_to_multiple, resize
from ..canvas.tiling import Tile
from ..errors import UserError
from .bands import Band, Bands
from .geometry import Size, geometry
from .memory import is_out_of_memory, release_cached
from .model import Condition, Denoiser, Pass, SRModel, Stage
from .options import UpscaleOptions
from .report import Notice, Progress, Report, ignored
from .tile_policy import TilePolicy
from .tiled_step import Canvas, step_tiles

BICUBIC_REACH = 2
BAND = 2**18  # latent pixels prepared at once, in well under a second
LARGE = 2**23  # pixels that one resizing operation may give; more are resized one channel at a time


@dataclass(frozen=True)
class Run:
    """What all pictures of a run share; see `upscale`."""

    model: SRModel
    options: UpscaleOptions
    policy: TilePolicy
    progress: Progress | None = None
    notice: Notice = ignored
    stage: Stage | None = None


def result_size(image: Tensor, options: UpscaleOptions) -> Size:
    """(height, width) of the result of pictures (B, C, H, W). Raises UserError for what cannot be upscaled."""
    size = options.size(image.shape[-2], image.shape[-1])
    if options.color is not None:
        require_known(options.color)
    if not torch.isfinite(image).all():
        raise UserError("The picture holds values that are not finite numbers (NaN or infinite): repair it first.")
    return size


def result_rows(run: Run, image: Tensor, *, index: int = 0, banded: bool = False, first: int = 0) -> Iterator[Tensor]:
    """The result's rows before any colour match, from the top down: (3, n, W) in [0, 1].

    Args:
        image: (1, 3, H, W) in [0, 1], number `index` of its batch.
        banded: yield the rows of one row of tiles at a time, for codecs that are local; without, all rows at once.
        first: the first row that is wanted.

    Raises:
        UserError: for a scale, size, tile or overlap out of bounds, or values that are not finite.
        MemoryError, RuntimeError: where there is not enough memory for the smallest tile.
    """
    height, width = image.shape[-2:]
    if run.options.only_shrinks(height, width):
        run.notice("The picture is larger than the size to reach: it was shrunk, without the network.")
        yield resize(image, run.options.size(height, width))[0, :, first:].clamp(0, 1)
        return
    condition = run.model.conditioner(image, index)
    run = replace(run, model=run.model.for_picture(image))
    model, recipe, codec = run.model, run.model.recipe, run.model.codec
    source, in_bands = Source(run, image), banded and codec.is_local
    sizes = source.way.network, source.way.result
    resizer = RowResizer(*sizes, first) if in_bands else WholeResizer(*sizes)
    plan = partial(run.policy.plan, recipe=recipe, factor=codec.factor, options=run.options, notice=run.notice)
    at_once = 0 if in_bands else BAND if codec.is_local else sys.maxsize
    bands = Bands(source.way.latent, plan, recipe.multiple, at_once=at_once, first=resizer.top // codec.factor)
    report = Report(codec, source.way, source.padded, run.progress, run.notice)
    while bands.left:
        band = bands.next()
        latents: list[Tensor | None] = []
        for view in _views(run, source, band, condition, report, latents):
            latents.append(_step_band(run, view, band, report))
            del view  # the canvas, which may be large
        latent = latents[-1]
        if latent is None:
            bands.replan()
            continue
        rows = resizer.add(*source.decoded(*bands.join(band, latent)))
        if rows is not None:
            yield rows
    report.end(model.denoiser.dtype)


@dataclass(frozen=True)
class View:
    """What a step of the recipe runs on, and its passes."""

    canvas: Canvas
    passes: tuple[Pass, ...]
    condition: Condition


def _views(
    run: Run, source: Source, band: Band, condition: Condition, report: Report, latents: Sequence[Tensor | None]
) -> Iterator[View]:
    """The view of the recipe's step, and of those that follow it. The caller adds the latent of each to `latents`,
    None where memory ran out, which ends the views."""
    model, passes = run.model, run.model.all_passes()
    canvas = source.canvas(band.top, band.bottom)
    report.begin(band, canvas.latent, len(passes) + len(model.recipe.further))
    yield View(canvas, passes, condition)
    for number, step in enumerate(model.recipe.further, 1):
        latent = latents[-1]
        if latent is None:
            return
        seen = source.seen_again(latent)
        if model.look_again is not None:
            condition = model.look_again(condition, seen)
        canvas = Canvas(latent, source.noise(latent, band.top, number), seen * 2 - 1)
        yield View(canvas, (Pass(step, model.denoiser),), condition)


def _step_band(run: Run, view: View, band: Band, report: Report) -> Tensor | None:
    """The band's tiles, stepped and weighted: (1, c, n, w). None where memory ran out on a single tile, of which the
    run's policy then knows. Raises UserError where values are not finite in float32 either."""
    canvas, passes, condition = view.canvas, view.passes, view.condition
    window, policy, result = band.tiles[0].size, run.policy, torch.zeros_like(canvas.latent)
    work, shape = partial(step_tiles, canvas=canvas, result=result, policy=policy), (1, canvas.latent.shape[1], *window)
    try:
        for one, denoiser, tiles in _attempts(passes, band.tiles):
            fitting = denoiser.tiles_at_once(shape)
            if fitting == 0:
                raise MemoryError("A tile is larger than the free memory.")
            batch = policy.at_once(min(len(tiles), run.options.batch or fitting), window)
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

    def __init__(self, run: Run, image: Tensor):
        self.model, self.seed, self.stage = run.model, run.options.seed, run.stage
        recipe, factor, size = self.model.recipe, self.model.codec.factor, (image.shape[-2], image.shape[-1])
        self.way = geometry(recipe, factor, size, run.options.size(*size))
        self.pixels = factor // recipe.scale  # LR pixels per latent pixel
        self.padded = pad_to_multiple(self._resized(image, self.way.lr), recipe.multiple * self.pixels)

    def _resized(self, image: Tensor, size: Size) -> Tensor:
        """`resize` by the recipe's method, which reports each channel of a large result as a stage."""
        mode = self.model.recipe.enlarging
        if size[0] * size[1] <= LARGE or image.shape[-2:] == size:
            return resize(image, size, mode)
        result = image.new_empty(*image.shape[:2], *size)
        for channel in range(image.shape[1]):
            result[:, channel : channel + 1] = resize(image[:, channel : channel + 1], size, mode)
            if self.stage is not None:
                self.stage(channel + 1, image.shape[1])
        return result

    def canvas(self, top: int, bottom: int) -> Canvas:
        """What the latent rows [top, bottom) are stepped from."""
        first, last = top * self.pixels, bottom * self.pixels
        latent = self.model.codec.encode(self._enlarged(first, last), self.stage)
        return Canvas(latent, self.noise(latent, top), self.padded[:, :, first:last] * 2 - 1)

    def noise(self, latent: Tensor, top: int, number: int = 0) -> Tensor | None:
        """The noise of the recipe's step `number`, for latent rows from `top` on; None if it needs none."""
        steps = (self.model.recipe.step, *self.model.recipe.further)
        before = sum(step.noises for step in steps[:number])
        if not steps[number].noises:
            return None
        drawn = canvas_noise(latent, self.seed, top, before + steps[number].noises)
        return drawn[:, before * latent.shape[1] :] if before else drawn

    def seen_again(self, latent: Tensor) -> Tensor:
        """What a further step sees (1, 3, H, W) in [0, 1], given the latent of the whole canvas so far."""
        share, result = self.model.recipe.result_share, self.model.codec.decode(latent, self.stage)
        return self.padded.clamp(0, 1).lerp(result.clamp(0, 1), share)

    def _enlarged(self, first: int, last: int) -> Tensor:
        """The LR rows [first, last), enlarged to the size that the network gives them."""
        scale, above = self.model.recipe.scale, min(BICUBIC_REACH, first)
        rows = self.padded[:, :, first - above : last + BICUBIC_REACH]
        enlarged = self._resized(rows, (rows.shape[-2] * scale, rows.shape[-1] * scale))
        return enlarged[:, :, above * scale : (above + last - first) * scale]

    def decoded(self, top: int, latent: Tensor) -> tuple[int, Tensor]:
        """The network's result (1, 3, n, W) in [0, 1] for the latent rows from `top` on, without padding, and the
        number of its first row."""
        height, width = self.way.network
        first = min(top * self.model.codec.factor, height)
        if latent.shape[-2] == 0:
            return first, latent.new_zeros(1, 3, 0, width)
        rows = self.model.codec.decode(latent, self.stage)[:, :, : height - first, :width]
        if not torch.isfinite(rows).all():
            raise UserError("The autoencoder gave values that are not finite: run it in float32.")
        return first, rows.clamp(0, 1)
