"""`upscale` for pictures whose result does not fit in memory: rows of tiles in, rows of the result out.

For codecs whose pixels depend on nothing far away (`is_local`). The result equals upscale's up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..canvas import color as colors
from ..canvas.noise import noise_rows
from ..canvas.resample_rows import Rows, resized_rows
from ..canvas.resize import pad_to_multiple, resize
from ..canvas.tiling import Plan, Tile, plan
from .geometry import geometry, latent_tile
from .model import SRModel
from .tiled_step import Canvas, step_canvas
from .upscale import Progress

BAND = 256  # result rows in hand at once
BICUBIC_REACH = 2


@dataclass
class BandedRun:
    """One picture (1, 3, H, W) in [0, 1] on its way to a result of `size`; see `upscale` for the settings."""

    model: SRModel
    image: Tensor
    size: tuple[int, int]
    tile: int | None = None
    overlap: int | None = None
    seed: int = 0
    batch: int | None = None

    def __post_init__(self) -> None:
        recipe, codec = self.model.recipe, self.model.codec
        way = geometry(recipe, codec.factor, (self.image.shape[-2], self.image.shape[-1]), self.size)
        self.pixels = codec.factor // recipe.scale  # LR pixels a latent pixel
        self.padded = pad_to_multiple(resize(self.image, way.lr), recipe.multiple * self.pixels)
        self.plan: Plan = plan(*way.latent, *latent_tile(recipe, codec.factor, self.tile, self.overlap))
        self.network_size = way.network

    def rows(self, first: int, progress: Progress | None = None) -> Iterator[Tensor]:
        """The result's rows from `first` on, before any colour match: (3, n, W) in [0, 1], a band at a time."""
        finished, held = first, _Held(self.network_size)
        ratio = self.network_size[0] / self.size[0]
        start = max(0, int(first * ratio) - _context(ratio))
        for top, band in self._network_rows(start, progress):
            held.add(top, band)
            while finished < self.size[0]:
                bottom = min(finished + BAND, self.size[0])
                if int(bottom * ratio) + _context(ratio) > held.bottom and held.bottom < self.network_size[0]:
                    break
                yield resized_rows(held.rows, self.network_size, self.size, finished, bottom)[0].clamp(0, 1)
                finished = bottom
                held.drop_before(max(0, int(finished * ratio) - _context(ratio)))

    def _network_rows(self, start: int, progress: Progress | None) -> Iterator[tuple[int, Tensor]]:
        """(top, rows (1, 3, n, W)) of the network's own result, from a row at or before `start` on, clamped."""
        factor, axis = self.model.codec.factor, self.plan.rows
        first = next(i for i, top in enumerate(axis.starts) if top + axis.size > start // factor)
        running = None  # what windows so far add to the rows after those that are ready
        flushed = axis.starts[first]
        for index in range(first, len(axis.starts)):
            band = self._row_of_tiles(index, progress)
            if running is not None:
                band[:, :, : running.shape[-2]] += running
            following = axis.starts[index + 1] if index + 1 < len(axis.starts) else axis.length
            ready, running = band[:, :, : following - flushed], band[:, :, following - flushed :].clone()
            rows = self.model.codec.decode(ready)[..., : self.network_size[1]]
            top, flushed = flushed * factor, following
            # On the way in after a cut, the first window's rows lack what the windows above it add.
            whole_from = axis.starts[first - 1] + axis.size if first else 0
            skipped = max(0, whole_from * factor - top)
            rows = rows[:, :, skipped : self.network_size[0] - top]
            if rows.shape[-2] > 0:
                yield top + skipped, rows.clamp(0, 1)

    def _row_of_tiles(self, index: int, progress: Progress | None) -> Tensor:
        """The tiles of one row, stepped and weighted: (1, c, tile, w)."""
        axis = self.plan.rows
        top, bottom = axis.starts[index], axis.starts[index] + axis.size
        canvas = self._canvas(top, bottom)
        tiles = [replace(t, top=0, bottom=axis.size) for t in self.plan if t.top == top]
        counter = iter(range(index * len(tiles) + 1, (index + 1) * len(tiles) + 1))

        def report(tile: Tile, piece: Tensor) -> None:
            if progress is not None:
                progress(next(counter), len(self.plan), self.model.codec.preview(piece)[0])

        said = self.model.conditioner(self.image, 0)
        return step_canvas(self.model, canvas, tiles, condition=said, batch=self.batch, done=report)

    def _canvas(self, top: int, bottom: int) -> Canvas:
        """What the latent rows [top, bottom) are stepped from."""
        scale, pixels = self.model.recipe.scale, self.pixels
        above = min(BICUBIC_REACH, top * pixels)
        lr = self.padded[:, :, top * pixels - above : bottom * pixels + BICUBIC_REACH]
        enlarged = resize(lr, (lr.shape[-2] * scale, lr.shape[-1] * scale))
        height = (bottom - top) * pixels * scale
        latent = self.model.codec.encode(enlarged[:, :, above * scale : above * scale + height])
        noise = noise_rows(latent.shape[1], latent.shape[-1], top, bottom, self.seed)[None].to(latent.device)
        return Canvas(latent, noise, self.padded[:, :, top * pixels : bottom * pixels] * 2 - 1)


class _Held:
    """The network's rows that are still needed, [top, bottom)."""

    def __init__(self, size: tuple[int, int]):
        self.size = size
        self.top = self.bottom = -1
        self.held = torch.zeros(0)

    def add(self, top: int, rows: Tensor) -> None:
        self.held = rows if self.top < 0 else torch.cat([self.held, rows], dim=-2)
        self.top = top if self.top < 0 else self.top
        self.bottom = self.top + self.held.shape[-2]

    def rows(self, first: int, last: int) -> Tensor:
        return self.held[:, :, first - self.top : last - self.top]

    def drop_before(self, first: int) -> None:
        if first > self.top:
            self.held = self.held[:, :, first - self.top :].clone()
            self.top = first


def _context(ratio: float) -> int:
    """Rows around those that a resized row looks at."""
    return int(2 * max(ratio, 1.0)) + 2


def matched_rows(
    rows: Callable[[int, int], Tensor], image: Tensor, size: tuple[int, int], method: colors.ColorMatch
) -> Rows:
    """A function (top, bottom) -> rows (3, n, W) with the colours of the small picture `image` (1, 3, h, w).

    rows: the same of the result before. What a row needs from its neighbours is read with it (wavelet), or is
    summed over the whole result first (AdaIN).
    """
    if method == "none":
        return rows
    small = (image.shape[-2], image.shape[-1])

    def reference(top: int, bottom: int) -> Tensor:
        return resized_rows(lambda first, last: image[:, :, first:last], small, size, top, bottom)

    if method == "wavelet":
        reach = colors.WAVELET_REACH

        def by_wavelet(top: int, bottom: int) -> Tensor:
            first, last = max(0, top - reach), min(size[0], bottom + reach)
            whole = colors.wavelet(rows(first, last)[None], reference(first, last))
            return whole[0, :, top - first : bottom - first].clamp(0, 1)

        return by_wavelet
    if method != "adain":
        return lambda top, bottom: colors.match(rows(top, bottom)[None], image, method)[0]
    moments = colors.moments_of(rows(top, min(top + BAND, size[0])) for top in range(0, size[0], BAND))
    return lambda top, bottom: colors.adain_with(rows(top, bottom)[None], moments, image)[0].clamp(0, 1)
