"""Write picture files, with the depth, alpha, colour profile and metadata that the format supports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..errors import UserError
from .animation import WRITERS, Film, save_gif, write_animation
from .metadata import Metadata, fitted, held_by_gif, held_by_jpeg, in_exif_settings, jpeg_settings, left_out
from .picture import MAX_PIXELS, Kind, Picture, as_integers
from .png import compressed, described_chunks, insert_chunks, start_png, write_chunk
from .tiff_write import write_tiff
from .whole import Ready, write_whole

JPEG = (".jpg", ".jpeg", ".jfif")
TIFF = (".tif", ".tiff")
SIDE_LIMITS = dict.fromkeys(JPEG, 65_535) | {".gif": 65_535, ".webp": 16_383, ".avif": 65_536}
WRITABLE = (".png", *JPEG, ".webp", ".avif", ".gif", *TIFF)
DEEP = (".png", *TIFF)
PNG_LEVEL = 4  # of 9, as ComfyUI saves: less than half of the time of Pillow's 6, for files up to 4 % larger, measured


def write_picture(path: Path, picture: Picture, quality: int = 95, ready: Ready = nullcontext) -> None:
    """Write PNG, JPEG, WebP, AVIF, GIF or TIFF, depending on the file name's extension; the file is never partial.

    16 bits and alpha are kept if the format supports them, floating point in TIFF; JPEG gets a white background.
    Metadata is the picture's own, with its sizes set (`metadata.describe` adds how it was made, or strips it).
    `quality` is for JPEG, WebP and AVIF, 1 to 100; `ready` is that of `write_whole`. Raises UserError for an unknown
    extension, a size that the format does not support, values that are not finite, or a file that cannot be written.
    """
    suffix = path.suffix.lower()
    _require(path, picture)
    write_whole(path, lambda temporary: _encode(temporary, suffix, picture, quality), ready)


def write_pictures(path: Path, pictures: Iterable[Picture], kind: Kind, film: Film, ready: Ready = nullcontext) -> None:
    """Write the frames of an animation, or pages, one at a time; the file is never partial.

    Animations go into GIF, WebP, PNG, AVIF and, without their durations, TIFF; pages into TIFF. Raises UserError as
    `write_picture` does, and for a format that holds one picture only.
    """
    suffix = path.suffix.lower()
    require_room(path, kind, film.count)
    checked = _checked(path, pictures)
    if suffix in TIFF:
        write_whole(path, lambda temporary: write_tiff(temporary, checked, film.count), ready)
    elif kind == "animation":
        write_whole(path, lambda temporary: write_animation(temporary, suffix, checked, film), ready)
    else:
        write_picture(path, next(checked), film.quality, ready)


def require_room(path: Path, kind: Kind, count: int) -> None:
    """Raises UserError if the format does not support so many pictures of this kind."""
    suffix = path.suffix.lower()
    if kind == "pages" and count > 1 and suffix not in TIFF:
        raise UserError(f"{path} does not support {count} pages: choose tif.")
    if kind == "animation" and count > 1 and suffix not in (*WRITERS, *TIFF):
        raise UserError(f"{path} does not support an animation of {count} frames: choose gif, webp or png.")


def _checked(path: Path, pictures: Iterable[Picture]) -> Iterator[Picture]:
    for picture in pictures:
        _require(path, picture)
        yield picture


def _require(path: Path, picture: Picture) -> None:
    require_writable(path, *picture.pixels.shape[-2:])
    if not torch.isfinite(picture.pixels).all():
        raise UserError(f"{path} was not written: the picture contains values that are not finite numbers.")


def require_writable(path: Path, height: int, width: int) -> None:
    """Raises UserError if the extension is not supported, or the format does not support pictures of this size."""
    suffix = path.suffix.lower()
    if suffix not in WRITABLE:
        raise UserError(f"{path} has an extension that is not supported: choose one of {', '.join(WRITABLE)}.")
    if max(height, width) > SIDE_LIMITS.get(suffix, MAX_PIXELS):
        raise UserError(f"{path}: {suffix[1:]} files do not support {width} x {height} px. Choose png or tif.")


def depth_of(bits: int, suffix: str) -> int:
    """Bits a channel that a picture of `bits` has in a file of this ending."""
    if suffix in TIFF:
        return bits
    return min(bits, 16 if suffix in DEEP else 8)


def has_room_for_alpha(suffix: str) -> bool:
    return suffix not in JPEG


def metadata_left_out(metadata: Metadata, suffix: str) -> str:
    """A sentence about what a file of this ending has no room for; empty where it keeps everything."""
    if suffix == ".gif":
        return left_out(metadata, held_by_gif(metadata))
    return left_out(metadata, held_by_jpeg(metadata)) if suffix in JPEG else ""


def profile_left_out(picture: Picture, suffix: str) -> str:
    """A sentence about a colour profile that a file of this ending has no room for; empty where it is kept."""
    if suffix != ".gif" or picture.icc_profile is None:
        return ""
    return "GIF files have no colour profile: the values are stored as they are, and colours may look different."


def _encode(path: Path, suffix: str, picture: Picture, quality: int) -> None:
    metadata = fitted(picture.metadata, *picture.pixels.shape[-2:])
    if suffix in TIFF:
        write_tiff(path, [picture])
    elif suffix == ".png" and picture.bits > 8:
        _write_deep_png(path, replace(picture, metadata=metadata))
    else:
        has_alpha = picture.alpha is not None and has_room_for_alpha(suffix)
        image = Image.fromarray(as_integers(picture, has_alpha, np.uint8))
        save_shallow(path, suffix, image, metadata, picture.icc_profile, quality)


def save_shallow(
    path: Path, suffix: str, image: Image.Image, metadata: Metadata, profile: bytes | None, quality: int
) -> None:
    """8 bits through Pillow: PNG, JPEG, WebP, AVIF or GIF. The metadata is of a picture of this size."""
    if suffix == ".gif":
        save_gif(path, [(image, 0)], metadata)
    elif suffix == ".png":
        image.save(path, format="PNG", compress_level=PNG_LEVEL)
        insert_chunks(path, described_chunks(metadata, profile))
    elif suffix in JPEG:
        image.save(path, format="JPEG", quality=quality, **jpeg_settings(metadata, profile))
    else:
        Image.init()
        if suffix[1:].upper() not in Image.SAVE:
            raise UserError(f"This version of Pillow cannot write {suffix[1:]} files: update Pillow, or choose png.")
        image.save(path, format=suffix[1:], quality=quality, **in_exif_settings(metadata, profile))


def _write_deep_png(path: Path, picture: Picture) -> None:
    values = as_integers(picture, picture.alpha is not None, np.uint16)
    with path.open("wb") as file:
        start_png(file, values.shape, 16, described_chunks(picture.metadata, picture.icc_profile))
        for part in compressed([values]):
            write_chunk(file, b"IDAT", part)
        write_chunk(file, b"IEND", b"")
