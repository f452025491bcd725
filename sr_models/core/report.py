"""Reports to the caller while a picture is upscaled: finished tiles with a preview, other work, and notices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..canvas.resize import resize
from ..canvas.tiling import Tile
from .bands import Band
from .geometry import Geometry, Size
from .model import Codec

PREVIEW_SIDE = 512  # previews have less than twice as many pixels a side; more would cost time for every tile
Progress = Callable[[int, int, Tensor], None]
Notice = Callable[[str], None]


def ignored(notice: str) -> None:
    """A notice callback that does nothing."""


class Report:
    """The reports for one picture.

    Attributes:
        way: the picture's sizes.
        picture: the network's input, with which the preview begins.
        done, total: number of finished tiles, and of all tiles, counting each pass.
        overflowed: number of tiles that overflowed in the network's precision and were computed in float32.
    """

    def __init__(self, codec: Codec, way: Geometry, picture: Tensor, progress: Progress | None, notice: Notice):
        self.codec, self.way, self.picture, self.progress, self.notice = codec, way, picture, progress, notice
        self.done = self.total = self.overflowed = 0
        self.step = max(1, max(way.latent) // PREVIEW_SIDE)  # latent pixels per pixel of the preview
        self.preview: Tensor | None = None
        self.top = self.reached = 0  # rows of the canvas: the band's first, and those that earlier bands have shown

    def begin(self, band: Band, latent: Tensor, passes: int = 1) -> None:
        """Start a band of the canvas, whose tiles run `passes` times; `latent` is its input."""
        self.done, self.total, self.top = band.before * passes, band.total * passes, band.top
        if self.progress is None:
            return
        if self.preview is None:
            size = self._coarse(self.way.latent)
            is_whole = latent.shape[-2:] == self.way.latent
            self.preview = latent.new_zeros(1, 3, *size) if is_whole else resize(self.picture, size).clamp(0, 1)
        fresh = max(band.top, self.reached)
        if fresh < band.bottom:
            self._show(self.preview, latent[:, :, fresh - band.top :], fresh, 0)
            self.reached = band.bottom

    def tile(self, tile: Tile, piece: Tensor) -> None:
        """Report a finished tile with its latent."""
        if self.progress is not None and self.preview is not None:
            self._show(self.preview, piece, self.top + tile.top, tile.left)
        self.count(tile, piece)

    def count(self, tile: Tile, piece: Tensor) -> None:
        """Report a finished tile without showing it."""
        self.done += 1
        if self.progress is not None and self.preview is not None:
            height, width = self._coarse(self.way.shown)
            self.progress(self.done, self.total, self.preview[0, :, :height, :width])

    def _show(self, preview: Tensor, latent: Tensor, top: int, left: int) -> None:
        """Put a part of the canvas that begins at (top, left) onto the preview."""
        down, right = -top % self.step, -left % self.step
        shown = self.codec.preview(latent)[:, :, down :: self.step, right :: self.step]
        row, column = (top + down) // self.step, (left + right) // self.step
        preview[:, :, row : row + shown.shape[-2], column : column + shown.shape[-1]] = shown

    def _coarse(self, size: Size) -> Size:
        return -(-size[0] // self.step), -(-size[1] // self.step)

    def end(self, dtype: torch.dtype) -> None:
        """Report the end of the picture; `dtype` is the network's precision."""
        if self.overflowed:
            self.notice(f"{self.overflowed} of {self.total} tiles overflowed in {dtype} and were computed in float32.")
