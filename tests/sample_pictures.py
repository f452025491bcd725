"""Small pictures with known values, and PNG files made by hand."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from onestep_sr.sr_models.files.picture import Picture
from PIL import Image
from places import PHOTOS

PHOTO = np.asarray(Image.open(PHOTOS / "houses.png").convert("RGB"))[40:88, 60:124]
GREY = np.asarray(Image.fromarray(PHOTO).convert("L"))
ALPHA = np.linspace(0, 255, 64).round().astype(np.uint8)[None].repeat(48, 0)
FRACTIONS = PHOTO / 255
LIGHT = np.where(FRACTIONS <= 0.04045, FRACTIONS / 12.92, ((FRACTIONS + 0.055) / 1.055) ** 2.4)  # IEC 61966-2-1


def deep(values: np.ndarray) -> np.ndarray:
    return values.astype(np.uint16) * 257


def distance(picture: Picture, values: np.ndarray, where: np.ndarray | None = None) -> float:
    """The largest difference from RGB or grey values in 0 to 255."""
    values = values if values.ndim == 3 else values[..., None]
    difference = np.abs(picture.pixels.numpy().transpose(1, 2, 0) * 255 - values.astype(np.float64))
    return float(difference.max() if where is None else difference[where].max())


def alpha_of(picture: Picture) -> np.ndarray:
    assert picture.alpha is not None
    return picture.alpha[0].numpy() * 255


def picture_of(values: np.ndarray) -> Picture:
    channels = torch.from_numpy(np.moveaxis(values, -1, 0).copy()).float() / np.iinfo(values.dtype).max
    return Picture(channels[:3], channels[3:] if len(channels) == 4 else None, bits=8 * values.dtype.itemsize)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_file(path: Path, values: np.ndarray, color: int, *chunks: tuple[bytes, bytes]) -> Path:
    """Unfiltered rows of uint8 or uint16 values in this colour type, and further chunks before them."""
    bits = 8 * values.dtype.itemsize
    stored = values.astype(">u2") if bits == 16 else values
    rows = b"".join(b"\0" + row.tobytes() for row in stored)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, color, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return path
