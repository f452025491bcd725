"""What a caller hears about a picture while it is upscaled: tiles done with a preview, and notices."""

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
    """For callers that show no notices."""


class Report:
    """Of one picture.

    Attributes:
        shown: the part (height, width) of its canvas that is picture and not padding.
        done, total: tiles.
        overflowed: tiles that were done in float32 after the network's own precision was too small for them.
    """

    def __init__(self, codec: Codec, shown: tuple[int, int], progress: Progress | None, notice: Notice):
        self.codec, self.shown, self.progress, self.notice = codec, shown, progress, notice
        self.done = self.total = self.overflowed = 0

    def begin(self, band: Band, latent: Tensor) -> None:
        """A band of the canvas comes next, with the latent that it is stepped from."""
        self.done, self.total = band.before, band.total
        if self.progress is not None:
            self.preview = self.codec.preview(latent)
            self.seen = self.preview[0, :, : self.shown[0] - band.top, : self.shown[1]]

    def tile(self, tile: Tile, piece: Tensor) -> None:
        """A tile is done, with this latent."""
        self.done += 1
        if self.progress is not None:
            tile.cut(self.preview).copy_(self.codec.preview(piece))
            self.progress(self.done, self.total, self.seen)

    def end(self, dtype: torch.dtype) -> None:
        """The picture is done, by a network in this precision."""
        if self.overflowed:
            self.notice(f"{self.overflowed} of {self.total} tiles overflowed in {dtype} and were done in float32.")
