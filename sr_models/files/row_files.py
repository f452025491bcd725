"""Write a picture file from rows that arrive one band at a time, so that the whole picture is never in memory.

PNG and tiled TIFF, BigTIFF where it has to be, are streamed; other encoders want the whole picture, which is then held
once, in 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from .metadata import Metadata, fitted
from .png import compressed, described_chunks, start_png, write_chunk
from .tiff_write import CLASSIC_TIFF_LIMIT, describe_pages, tiff_options
from .write import TIFF, save_shallow

RowsOf = Callable[[int, int], Tensor]
BAND = 256
TIFF_TILE = 256
KINDS = {8: np.uint8, 16: np.uint16, 32: np.float32}


@dataclass(frozen=True)
class RowPicture:
    """A picture given by its rows: rows(top, bottom) -> (3 or 4, n, width) in [0, 1], called from top to bottom.

    bits: 8, 16, or 32 for floating point; `write.depth_of` says which of them a format has.
    """

    rows: RowsOf
    height: int
    width: int
    channels: int = 3
    bits: int = 8
    icc_profile: bytes | None = None
    metadata: Metadata = field(default_factory=Metadata)

    def values(self, top: int, bottom: int) -> np.ndarray:
        """Rows as (n, width, channels): rounded integers, or floating point."""
        kind = KINDS[self.bits]
        rows = self.rows(top, bottom).clamp(0, 1).permute(1, 2, 0).cpu()
        scaled = rows if self.bits == 32 else (rows * np.iinfo(kind).max).round()
        return np.ascontiguousarray(scaled.numpy().astype(kind))

    def bands(self) -> Iterator[tuple[int, np.ndarray]]:
        for top in range(0, self.height, BAND):
            yield top, self.values(top, min(top + BAND, self.height))

    def described(self) -> Metadata:
        return fitted(self.metadata, self.height, self.width)


def write_rows(path: Path, suffix: str, picture: RowPicture, quality: int) -> None:
    """Write PNG, TIFF, JPEG, WebP, AVIF or GIF, depending on the suffix, with profile and metadata."""
    if suffix == ".png":
        _write_png(path, picture)
    elif suffix in TIFF:
        _write_tiff(path, picture)
    else:
        _write_whole(path, suffix, picture, quality)


def _write_png(path: Path, picture: RowPicture) -> None:
    with path.open("wb") as file:
        shape = (picture.height, picture.width, picture.channels)
        start_png(file, shape, picture.bits, described_chunks(picture.described(), picture.icc_profile))
        for part in compressed(values for _, values in picture.bands()):
            write_chunk(file, b"IDAT", part)
        write_chunk(file, b"IEND", b"")


def _write_tiff(path: Path, picture: RowPicture) -> None:
    import tifffile

    kind = KINDS[picture.bits]
    size = picture.height * picture.width * picture.channels * np.dtype(kind).itemsize
    with tifffile.TiffWriter(path, bigtiff=size > CLASSIC_TIFF_LIMIT) as writer:
        writer.write(
            _tiles(picture),
            shape=(picture.height, picture.width, picture.channels),
            dtype=kind,
            tile=(TIFF_TILE, TIFF_TILE),
            maxworkers=1,
            **tiff_options(picture.channels, picture.icc_profile),
        )
    describe_pages(path, [picture.described()])


def _tiles(picture: RowPicture) -> Iterator[np.ndarray]:
    for _, values in picture.bands():
        for left in range(0, picture.width, TIFF_TILE):
            cut = values[:, left : left + TIFF_TILE]
            missing = (0, TIFF_TILE - cut.shape[0]), (0, TIFF_TILE - cut.shape[1]), (0, 0)
            yield np.ascontiguousarray(np.pad(cut, missing))


def _write_whole(path: Path, suffix: str, picture: RowPicture, quality: int) -> None:
    whole = np.empty((picture.height, picture.width, picture.channels), np.uint8)
    for top, values in picture.bands():
        whole[top : top + len(values)] = values
    save_shallow(path, suffix, Image.fromarray(whole), picture.described(), picture.icc_profile, quality)
