"""Animations: whole frames in, whole frames out, one at a time.

Sources: the third edition of PNG (APNG), the WebP container specification, GIF89a.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np
from PIL import GifImagePlugin, Image

from .exif import to_block
from .metadata import COMMENT, Metadata, all_in_exif, fitted, in_exif_settings
from .picture import Picture, as_integers, from_pillow
from .png import compressed, described_chunks, start_png, write_chunk

ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
GIF_COLORS = 255  # and one that is transparent
WEBP_LONGEST = 2**24 - 1  # milliseconds
MANY = 2**16 - 1


@dataclass(frozen=True)
class Film:
    """How an animation is written: its number of frames, how often it is shown (0: for ever), WebP's quality."""

    count: int
    plays: int = 0
    quality: int = 95


def count_frames(image: Image.Image) -> int:
    """Frames of an animation, 1 for every other file. An APNG's picture for readers of PNG is none of them."""
    if image.format not in ANIMATED:
        return 1
    return max(1, getattr(image, "n_frames", 1) - _first_frame(image))


def _first_frame(image: Image.Image) -> int:
    return int(bool(getattr(image, "default_image", False)))


def part_left_out(image: Image.Image) -> str:
    """What is not read of an APNG that has a picture of its own for readers of PNG."""
    if not _first_frame(image):
        return ""
    if count_frames(image) > 1:
        return "The file's still picture, for programs that do not show animations, is not used."
    return "The file also holds an animation of one frame, which is not used."


def plays_of(image: Image.Image) -> int:
    """GIF counts repetitions, and is shown once without a count; WebP and APNG count showings."""
    loop = image.info.get("loop", 0)
    if image.format == "GIF":
        return 1 if "loop" not in image.info else loop + 1 if loop else 0
    return loop


def read_frames(image: Image.Image) -> Iterator[Picture]:
    """Whole frames, each as long as the file says."""
    first = _first_frame(image)
    for number in range(first, first + count_frames(image)):
        image.seek(number)
        image.load()
        yield replace(from_pillow(image), duration=float(image.info.get("duration", 0)))


def write_animation(path: Path, suffix: str, frames: Iterable[Picture], film: Film) -> None:
    """Write GIF, WebP, PNG or AVIF. Frames are 8 bits deep and all of the first one's size."""
    iterator = iter(frames)
    first = next(iterator)
    metadata = fitted(first.metadata, *first.pixels.shape[-2:])
    WRITERS[suffix](path, replace(first, metadata=metadata), chain([first], iterator), film)


def _pixels(frame: Picture) -> np.ndarray:
    """(H, W, 4): an animation has alpha in all of its frames or in none, which the first cannot tell."""
    values = as_integers(frame, True, np.uint8)
    if frame.alpha is None:
        values = np.concatenate([values, np.full_like(values[..., :1], 255)], axis=-1)
    return values


def _milliseconds(frame: Picture) -> int:
    return round(frame.duration or 0)


def _write_apng(path: Path, first: Picture, frames: Iterable[Picture], film: Film) -> None:
    height, width = first.pixels.shape[-2:]
    control = (b"acTL", struct.pack(">II", film.count, film.plays))
    with path.open("wb") as file:
        start_png(file, (height, width, 4), 8, [control, *described_chunks(first.metadata, first.icc_profile)])
        sequence = 0
        for number, frame in enumerate(frames):
            place = struct.pack(">IIIII", sequence, width, height, 0, 0)
            write_chunk(file, b"fcTL", place + struct.pack(">HHBB", *_apng_delay(frame), 0, 0))
            sequence += 1
            for part in compressed([_pixels(frame)]):
                if number == 0:
                    write_chunk(file, b"IDAT", part)
                else:
                    write_chunk(file, b"fdAT", struct.pack(">I", sequence) + part)
                    sequence += 1
        write_chunk(file, b"IEND", b"")


def _apng_delay(frame: Picture) -> tuple[int, int]:
    """A fraction of seconds of two 16-bit numbers."""
    milliseconds = _milliseconds(frame)
    return (milliseconds, 1000) if milliseconds <= MANY else (min(milliseconds // 1000, MANY), 1)


def _write_webp(path: Path, first: Picture, frames: Iterable[Picture], film: Film) -> None:
    """The container by hand and each frame by Pillow, so that no more than one is in memory."""
    height, width = first.pixels.shape[-2:]
    block = to_block(all_in_exif(first.metadata))
    flags = (
        0x02 | 0x10 | (0x20 if first.icc_profile else 0) | (0x08 if block else 0) | (0x04 if first.metadata.xmp else 0)
    )
    with path.open("wb") as file:
        file.write(b"RIFF\0\0\0\0WEBP")
        _riff(file, b"VP8X", struct.pack("<I", flags) + _three(width - 1) + _three(height - 1))
        _riff(file, b"ICCP", first.icc_profile)
        _riff(file, b"ANIM", struct.pack("<IH", 0, min(film.plays, MANY)))
        for frame in frames:
            encoded = io.BytesIO()
            Image.fromarray(_pixels(frame)).save(encoded, "WEBP", quality=film.quality)
            duration = _three(min(_milliseconds(frame), WEBP_LONGEST))
            head = bytes(6) + _three(width - 1) + _three(height - 1) + duration + b"\x02"  # not blended, kept
            _riff(file, b"ANMF", head + _bitstream(encoded.getvalue()))
        _riff(file, b"EXIF", block)
        _riff(file, b"XMP ", first.metadata.xmp)
        size = file.tell() - 8
        file.seek(4)
        file.write(struct.pack("<I", size))


def _riff(file: IO[bytes], name: bytes, content: bytes | None) -> None:
    if content:
        file.write(name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2))


def _three(value: int) -> bytes:
    return value.to_bytes(3, "little")


def _bitstream(still: bytes) -> bytes:
    """The chunks of a still WebP that are its pixels and alpha."""
    kept, place = b"", 12
    while place + 8 <= len(still):
        name, size = struct.unpack_from("<4sI", still, place)
        end = place + 8 + size + size % 2
        if name in (b"VP8 ", b"VP8L", b"ALPH"):
            kept += still[place:end]
        place = end
    return kept


def _write_gif(path: Path, first: Picture, frames: Iterable[Picture], film: Film) -> None:
    images = (
        (Image.fromarray(as_integers(frame, frame.alpha is not None, np.uint8)), _milliseconds(frame))
        for frame in frames
    )
    save_gif(path, images, first.metadata, film.plays)


def save_gif(path: Path, images: Iterable[tuple[Image.Image, int]], metadata: Metadata, plays: int = 1) -> None:
    """RGB or RGBA pictures of one size, each with its milliseconds. A frame has 256 colours of its own, and alpha
    that is there or not, as the format has it."""
    texts = (metadata.text.get(name, "") for name in (COMMENT, "Software"))
    comment = "\n".join(filter(None, texts)).encode()
    with path.open("wb") as file:
        for number, (image, milliseconds) in enumerate(images):
            if number == 0:
                file.write(b"GIF89a" + struct.pack("<HHBBB", *image.size, 0x70, 0, 0))
                _gif_extensions(file, plays, comment)
            disposal = 2 if image.mode == "RGBA" else 1  # where it is transparent, the last one must not show through
            hundredths = min(round(milliseconds / 10), MANY)
            file.write(b"!\xf9\x04" + struct.pack("<BHBB", disposal << 2 | 1, hundredths, GIF_COLORS, 0))
            file.write(b"".join(GifImagePlugin.getdata(_few_colors(image), include_color_table=True)))
        file.write(b";")


def _gif_extensions(file: IO[bytes], plays: int, comment: bytes) -> None:
    if plays != 1:
        file.write(b"!\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<HB", min(max(plays - 1, 0), MANY), 0))
    if comment:
        parts = (comment[start : start + 255] for start in range(0, len(comment), 255))
        file.write(b"!\xfe" + b"".join(bytes([len(part)]) + part for part in parts) + b"\0")


def _few_colors(image: Image.Image) -> Image.Image:
    """255 colours, and index 255 where the alpha is under a half."""
    reduced = image.convert("RGB").quantize(GIF_COLORS)
    indices = np.array(reduced)
    if image.mode == "RGBA":
        indices[np.asarray(image.getchannel("A")) < 128] = GIF_COLORS
    result = Image.frombytes("P", image.size, indices.tobytes())
    result.putpalette(((reduced.getpalette() or []) + [0] * 768)[:768])
    return result


def _write_avif(path: Path, first: Picture, frames: Iterable[Picture], film: Film) -> None:
    """Pillow's encoder wants a list of frames: the whole animation is in memory, in 8 bits."""
    held = [(Image.fromarray(_pixels(frame)), _milliseconds(frame)) for frame in frames]
    images, durations = zip(*held, strict=True)
    images[0].save(
        path,
        "AVIF",
        save_all=True,
        append_images=images[1:],
        duration=list(durations),
        quality=film.quality,
        **in_exif_settings(first.metadata, first.icc_profile),
    )


WRITERS: dict[str, Callable[[Path, Picture, Iterable[Picture], Film], None]] = {
    ".png": _write_apng,
    ".webp": _write_webp,
    ".gif": _write_gif,
    ".avif": _write_avif,
}
