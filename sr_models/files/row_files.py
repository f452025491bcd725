"""Write a picture file from rows that arrive one band at a time, so that the whole picture is never in memory.

PNG (W3C Recommendation, third edition) and tiled TIFF (BigTIFF if the size requires it) are streamed. JPEG and WebP
encoders need the whole picture, which is then held once, in 8 bits.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

RowsOf = Callable[[int, int], Tensor]
BAND = 256
TIFF_TILE = 256
PNG_COLORS = {3: 2, 4: 6}  # channels -> colour type
PNG_FILTER_UP = 2
CLASSIC_TIFF_LIMIT = 2**32 - 2**25


@dataclass(frozen=True)
class RowPicture:
    """A picture given by its rows: rows(top, bottom) -> (3 or 4, n, width) in [0, 1], called from top to bottom."""

    rows: RowsOf
    height: int
    width: int
    channels: int = 3
    bits: int = 8
    icc_profile: bytes | None = None

    def values(self, top: int, bottom: int) -> np.ndarray:
        """Rows as rounded integers (n, width, channels)."""
        kind = np.uint16 if self.bits == 16 else np.uint8
        scaled = (self.rows(top, bottom).clamp(0, 1) * np.iinfo(kind).max).round()
        return np.ascontiguousarray(scaled.permute(1, 2, 0).cpu().numpy().astype(kind))

    def bands(self) -> Iterator[tuple[int, np.ndarray]]:
        for top in range(0, self.height, BAND):
            yield top, self.values(top, min(top + BAND, self.height))


def write_rows(path: Path, suffix: str, picture: RowPicture, quality: int) -> None:
    """Write PNG, TIFF, JPEG or WebP, depending on the suffix."""
    if suffix == ".png":
        _write_png(path, picture)
    elif suffix in (".tif", ".tiff"):
        _write_tiff(path, picture)
    else:
        _write_whole(path, picture, quality)


def _write_png(path: Path, picture: RowPicture) -> None:
    compressor = zlib.compressobj(level=3)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        color = PNG_COLORS[picture.channels]
        _chunk(file, b"IHDR", struct.pack(">IIBBBBB", picture.width, picture.height, picture.bits, color, 0, 0, 0))
        if picture.icc_profile:
            _chunk(file, b"iCCP", b"ICC profile\0\0" + zlib.compress(picture.icc_profile))
        above = np.zeros(picture.width * picture.channels * picture.bits // 8, np.uint8)
        for _, values in picture.bands():
            lines = values.astype(values.dtype.newbyteorder(">")).view(np.uint8).reshape(len(values), -1)
            difference = lines - np.concatenate([above[None], lines[:-1]])  # wraps around, as the PNG filter does
            filtered = np.pad(difference, ((0, 0), (1, 0)), constant_values=PNG_FILTER_UP)
            _chunk(file, b"IDAT", compressor.compress(filtered.tobytes()))
            above = lines[-1]
        _chunk(file, b"IDAT", compressor.flush())
        _chunk(file, b"IEND", b"")


def _chunk(file, kind: bytes, content: bytes) -> None:
    if content or kind == b"IEND":
        check = struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))
        file.write(struct.pack(">I", len(content)) + kind + content + check)


def _write_tiff(path: Path, picture: RowPicture) -> None:
    import tifffile

    kind = np.uint16 if picture.bits == 16 else np.uint8
    size = picture.height * picture.width * picture.channels * np.dtype(kind).itemsize
    with tifffile.TiffWriter(path, bigtiff=size > CLASSIC_TIFF_LIMIT) as writer:
        writer.write(
            _tiles(picture),
            shape=(picture.height, picture.width, picture.channels),
            dtype=kind,
            tile=(TIFF_TILE, TIFF_TILE),
            photometric="rgb",
            extrasamples=["unassalpha"] if picture.channels == 4 else None,
            compression="zlib",
            predictor=True,
            iccprofile=picture.icc_profile,
            maxworkers=1,
        )


def _tiles(picture: RowPicture) -> Iterator[np.ndarray]:
    for _, values in picture.bands():
        for left in range(0, picture.width, TIFF_TILE):
            cut = values[:, left : left + TIFF_TILE]
            missing = (0, TIFF_TILE - cut.shape[0]), (0, TIFF_TILE - cut.shape[1]), (0, 0)
            yield np.ascontiguousarray(np.pad(cut, missing))


def _write_whole(path: Path, picture: RowPicture, quality: int) -> None:
    whole = np.empty((picture.height, picture.width, picture.channels), np.uint8)
    for top, values in picture.bands():
        whole[top : top + len(values)] = values
    Image.fromarray(whole).save(path, icc_profile=picture.icc_profile, quality=quality)
