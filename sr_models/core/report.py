"""Reports to the caller while a picture is upscaled: finished tiles with a preview, and notices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..canvas.tiling import Tile
from .bands import Band
from .model import Codec

Progress = Callable[[int, int, Tensor], None]
Notice = Callable[[str], None]


def ignored(notice: str) -> None:
    """A notice callback that does nothing."""


class Report:
    """The reports for one picture.

    Attributes:
        shown: (height, width) of the canvas without padding, in latent pixels.
        done, total: number of finished tiles, and of all tiles, counting each pass.
        overflowed: number of tiles that overflowed in the network's precision and were computed in float32.
    """

    def __init__(self, codec: Codec, shown: tuple[int, int], progress: Progress | None, notice: Notice):
        self.codec, self.shown, self.progress, self.notice = codec, shown, progress, notice
        self.done = self.total = self.overflowed = 0

    def begin(self, band: Band, latent: Tensor, passes: int = 1) -> None:
        """Start a band of the canvas, whose tiles run `passes` times; `latent` is its input."""
        self.done, self.total = band.before * passes, band.total * passes
        if self.progress is not None:
            self.preview = self.codec.preview(latent)
            self.seen = self.preview[0, :, : self.shown[0] - band.top, : self.shown[1]]

    def tile(self, tile: Tile, piece: Tensor) -> None:
        """Report a finished tile with its latent."""
        if self.progress is not None:
            tile.cut(self.preview).copy_(self.codec.preview(piece))
        self.count(tile, piece)

    def count(self, tile: Tile, piece: Tensor) -> None:
        """Report a finished tile without showing it."""
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total, self.seen)

    def end(self, dtype: torch.dtype) -> None:
        """Report the end of the picture; `dtype` is the network's precision."""
        if self.overflowed:
            self.notice(f"{self.overflowed} of {self.total} tiles overflowed in {dtype} and were computed in float32.")
