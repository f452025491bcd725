"""PNG (W3C Recommendation, third edition): its colour chunks, its texts, 16 bits, and writing by rows and frames."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from .exif import to_block
from .metadata import Metadata
from .profiles import SRGB, UnreadableError, from_code_points, profile_of, to_srgb_curve

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLORS = {3: 2, 4: 6}  # channels -> colour type
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type -> channels
HIGHEST_RATIO = 1100
FILTER_UP = 2
XMP_NAME = "XML:com.adobe.xmp"
INCH = 0.0254
Chunk = tuple[bytes, bytes]


def head_chunks(path: Path) -> dict[bytes, bytes]:
    """The chunks before the pixels, by name."""
    found: dict[bytes, bytes] = {}
    with path.open("rb") as file:
        file.seek(len(SIGNATURE))
        while len(head := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", head)
            if kind in (b"IDAT", b"IEND"):
                break
            if size > 2**24:
                file.seek(size + 4, 1)
                continue
            found.setdefault(kind, file.read(size))
            file.seek(4, 1)
    return found


def require_plausible(path: Path) -> None:
    """Raises UnreadableError where the header says more pixels than the file can hold: Deflate's best is 1032 to 1."""
    header = head_chunks(path).get(b"IHDR", b"")
    if len(header) != 13:
        raise UnreadableError("is broken or truncated: copy or download it again.")
    width, height, bits, color = struct.unpack_from(">IIBB", header)
    size = width * height * bits * CHANNELS.get(color, 1) // 8
    if size > HIGHEST_RATIO * path.stat().st_size:
        raise UnreadableError(
            f"is broken: a file of this size cannot hold {width} x {height} px; copy or download it again."
        )


def decode_deep(path: Path) -> np.ndarray:
    """(H, W, C) uint16 of a PNG of 16 bits, whose colours Pillow would reduce to 8."""
    import imagecodecs

    values = imagecodecs.png_decode(path.read_bytes())
    return values[..., None] if values.ndim == 2 else values


def apply_color(values: np.ndarray, chunks: Mapping[bytes, bytes]) -> tuple[np.ndarray, bytes | None]:
    """(3, H, W) values as the colour chunks mean them, in sRGB's curve, and a profile where the primaries are
    others. cICP goes before iCCP, that before sRGB, that before gAMA and cHRM. Raises UnreadableError for HDR and for
    values of limited range."""
    if len(chunks.get(b"cICP", b"")) == 4:
        if not chunks[b"cICP"][3]:
            raise UnreadableError("holds values of limited range, as videos do: convert it to full range first.")
        return from_code_points(values, chunks[b"cICP"][0], chunks[b"cICP"][1])
    if b"iCCP" in chunks or b"sRGB" in chunks:
        return values, None
    gamma = struct.unpack(">I", chunks.get(b"gAMA", b"").ljust(4, b"\0")[:4])[0] / 100_000
    values = to_srgb_curve(values, 1 / gamma) if gamma else values
    numbers = chunks.get(b"cHRM", b"")
    chromaticities = tuple(value / 100_000 for value in struct.unpack(">8I", numbers)) if len(numbers) == 32 else SRGB
    return values, profile_of(chromaticities) if all(chromaticities[1::2]) else None


def transparent_grey(value: int, header: bytes) -> int:
    """The grey that tRNS makes transparent, on the scale of the pixels that Pillow decodes to 8 bits."""
    bits, color = header[8:10]
    return value * 255 // (2**bits - 1) if color == 0 and bits in (2, 4) else value


def described_chunks(metadata: Metadata, profile: bytes | None) -> list[Chunk]:
    """Chunks for everything but the pixels, to stand between IHDR and IDAT."""
    chunks: list[Chunk] = []
    if profile:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(profile)))
    if metadata.dpi:
        across, down = (min(round(dots / INCH), 2**31 - 1) for dots in metadata.dpi)
        chunks.append((b"pHYs", struct.pack(">IIB", across, down, 1)))
    if block := to_block(metadata.exif):
        chunks.append((b"eXIf", block))
    if metadata.xmp:
        chunks.append((b"iTXt", XMP_NAME.encode() + b"\0\0\0\0\0" + metadata.xmp))
    return chunks + [_text_chunk(name, text) for name, text in metadata.text.items()]


def _text_chunk(name: str, text: str) -> Chunk:
    key = name.encode("latin-1", "replace")[:79]
    try:
        return b"tEXt", key + b"\0" + text.encode("latin-1")
    except UnicodeEncodeError:
        return b"iTXt", key + b"\0\0\0\0\0" + text.encode()


def write_chunk(file: IO[bytes], kind: bytes, content: bytes) -> None:
    check = struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))
    file.write(struct.pack(">I", len(content)) + kind + content + check)


def start_png(file: IO[bytes], shape: tuple[int, int, int], bits: int, chunks: Iterable[Chunk]) -> None:
    """Everything before the pixels of a picture of `shape` (height, width, 3 or 4)."""
    height, width, channels = shape
    file.write(SIGNATURE)
    write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, bits, COLORS[channels], 0, 0, 0))
    for kind, content in chunks:
        write_chunk(file, kind, content)


def insert_chunks(path: Path, chunks: Iterable[Chunk]) -> None:
    """Put chunks behind the header of a written file."""
    whole = path.read_bytes()
    end = len(SIGNATURE) + 25
    with path.open("wb") as file:
        file.write(whole[:end])
        for kind, content in chunks:
            write_chunk(file, kind, content)
        file.write(whole[end:])


def compressed(bands: Iterable[np.ndarray]) -> Iterator[bytes]:
    """The pixels' stream, in parts, from bands (n, width, channels) of uint8 or uint16; rows are stored as their
    difference from the one above."""
    compressor = zlib.compressobj(level=3)
    above = np.zeros(0, np.uint8)
    for values in bands:
        lines = values.astype(values.dtype.newbyteorder(">")).view(np.uint8).reshape(len(values), -1)
        above = above if len(above) else np.zeros_like(lines[0])
        difference = lines - np.concatenate([above[None], lines[:-1]])  # wraps around, as the filter does
        filtered = np.pad(difference, ((0, 0), (1, 0)), constant_values=FILTER_UP)
        if part := compressor.compress(filtered.tobytes()):
            yield part
        above = lines[-1]
    yield compressor.flush()
