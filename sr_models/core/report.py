"""Reports to the caller while a picture is upscaled: finished tiles with a preview, other work, and notices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..canvas.resize import resize
from ..canvas.tiling import Tile
from .bands import Band
from .geometry import Geometry
from .model import Codec

Progress = Callable[[int, int, Tensor], None]
Notice = Callable[[str], None]


def ignored(notice: str) -> None:
    """A notice callback that does nothing."""


class Report:
    """The reports for one picture.

    Attributes:
        way: the picture's sizes.
        picture: the network's input, with which the preview begins.
        done, total: number of finished tiles, and of all tiles.
        overflowed: number of tiles that overflowed in the network's precision and were computed in float32.
    """

    def __init__(self, codec: Codec, way: Geometry, picture: Tensor, progress: Progress | None, notice: Notice):
        self.codec, self.way, self.picture, self.progress, self.notice = codec, way, picture, progress, notice
        self.done = self.total = self.overflowed = 0
        self.preview: Tensor | None = None
        self.top = self.reached = 0  # rows of the canvas: the band's first, and those that earlier bands have shown

    def begin(self, band: Band, latent: Tensor) -> None:
        """Start a band of the canvas; `latent` is its input."""
        self.done, self.total, self.top = band.before, band.total, band.top
        if self.progress is None:
            return
        shown = self.codec.preview(latent)
        if shown.shape[-2:] == self.way.latent:
            self.preview = shown
            return
        if self.preview is None:
            self.preview = resize(self.picture, self.way.latent).clamp(0, 1)
        fresh = max(band.top, self.reached)
        self.preview[:, :, fresh : band.bottom] = shown[:, :, fresh - band.top :]
        self.reached = band.bottom

    def tile(self, tile: Tile, piece: Tensor) -> None:
        """Report a finished tile with its latent."""
        self.done += 1
        if self.progress is not None and self.preview is not None:
            tile.cut(self.preview[:, :, self.top :]).copy_(self.codec.preview(piece))
            self.progress(self.done, self.total, self.preview[0, :, : self.way.shown[0], : self.way.shown[1]])

    def end(self, dtype: torch.dtype) -> None:
        """Report the end of the picture; `dtype` is the network's precision."""
        if self.overflowed:
            self.notice(f"{self.overflowed} of {self.total} tiles overflowed in {dtype} and were computed in float32.")
