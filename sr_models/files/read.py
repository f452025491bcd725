"""Reading picture files of any format, mode and depth: the content decides what a file is, not its name."""

from __future__ import annotations

import logging
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from ..errors import UserError
from . import png
from .animation import count_frames, part_left_out, plays_of, read_frames
from .exr import read_exr
from .formats import format_of, require_decoder
from .metadata import metadata_of
from .picture import MAX_PIXELS, Picture, PictureSequence, from_pillow, from_values, orientation_of, turned
from .profiles import UnreadableError, from_code_points
from .tiff import count_pages, read_pages

T = TypeVar("T")
COPY_AGAIN = "copy or download it again."
BOXES = 2**16  # bytes at the beginning of an AVIF or HEIC file that hold its description


def read_picture(path: Path) -> Picture:
    """Read the only picture of a file, the first frame or the first page. Raises UserError as `read_pictures` does."""
    return next(iter(read_pictures(path)))


def read_pictures(path: Path) -> PictureSequence:
    """Open a picture, an animation (GIF, WebP, APNG, AVIF) or the pages of a TIFF file.

    Pictures come upright, with their depth, alpha, RGB profile and metadata. Grey with a profile, CMYK and Lab become
    sRGB, and so do PNGs with another transfer curve. Raises UserError, here or while iterating, for a file that is
    missing, empty, truncated, not a picture, or cannot be read correctly.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: check the name.")
    with said_of(path):
        if path.stat().st_size == 0:
            raise UnreadableError("is empty (0 bytes): " + COPY_AGAIN)
        found = format_of(path)
        if found is None:
            raise UnidentifiedImageError
        require_decoder(found)
        if found == "TIFF":
            count, largest = count_pages(path)
            kind = "pages" if count > 1 else "single"
            return PictureSequence(kind, count, partial(decoded, path, read_pages), largest=largest)
        if found == "EXR":
            return PictureSequence("single", 1, partial(decoded, path, _exr_pictures))
        return _open_pillow(path, found)


def _exr_pictures(path: Path) -> Iterator[Picture]:
    yield read_exr(path)


def _open_pillow(path: Path, kind: str) -> PictureSequence:
    if kind == "PNG":
        png.require_plausible(path)
    Image.init()
    if kind not in Image.OPEN:
        raise UnreadableError(f"is {kind}, which this version of Pillow cannot read: update Pillow.")
    with _opened(path, kind) as image:
        if image.width * image.height > MAX_PIXELS:
            raise UnreadableError(f"has {image.width} x {image.height} px, too large: split it into parts.")
        count, plays, largest = count_frames(image), plays_of(image), image.width * image.height
    read = partial(decoded, path, partial(_pillow_pictures, kind))
    return PictureSequence("animation" if count > 1 else "single", count, read, plays, largest)


def _opened(path: Path, kind: str) -> ImageFile:
    try:
        return Image.open(path, formats=[kind])
    except UnidentifiedImageError:
        raise UnreadableError(f"is broken, or a kind of {kind} that is not supported: save it again as PNG.") from None


def _pillow_pictures(kind: str, path: Path) -> Iterator[Picture]:
    colors = _color_of(path, kind)
    with Image.open(path, formats=[kind]) as image:
        if isinstance(colors, dict) and isinstance(transparent := image.info.get("transparency"), int):
            image.info["transparency"] = png.transparent_grey(transparent, colors[b"IHDR"])
        if count_frames(image) > 1:
            pictures = read_frames(image)
        else:
            pictures = iter([_deep_picture(path, image) or from_pillow(image)])
        for picture in pictures:
            yield replace(_in_srgb(picture, colors), metadata=metadata_of(image), notices=_notices(image))


def _notices(image: Image.Image) -> tuple[str, ...]:
    others = getattr(image, "n_frames", 1) - 1 if image.format == "MPO" else 0
    if others:
        return (f"The file holds {others} more pictures (a preview or another view), which are not used.",)
    return (left_out,) if (left_out := part_left_out(image)) else ()


def _deep_picture(path: Path, image: ImageFile) -> Picture | None:
    """Files of more than 8 bits, which Pillow would reduce; None for all others."""
    values = _deep_values(path, image)
    if values is None:
        return None
    return turned(from_values(np.atleast_3d(values), image.info.get("icc_profile")), orientation_of(image))


def _deep_values(path: Path, image: ImageFile) -> np.ndarray | None:
    if image.format == "PNG" and png.head_chunks(path)[b"IHDR"][8] == 16:
        return png.decode_deep(path)
    if image.format == "AVIF" and (bits := _avif_bits(path)) > 8:
        return _in_16_bits(_decoded(path, "avif"), 2**bits - 1)
    if image.format == "JPEG2000" and image.mode in ("RGB", "RGBA") and (bits := _jpeg2000_bits(path)) > 8:
        return _in_16_bits(_decoded(path, "jpeg2k"), 2**bits - 1)
    if image.format == "PPM" and image.mode == "RGB" and (top := _ppm_top(image)) > 255:
        values = np.fromfile(path, ">u2", 3 * image.width * image.height, offset=image.tile[0][2])
        return _in_16_bits(values.reshape(image.height, image.width, 3), top)
    return None


def _decoded(path: Path, codec: str) -> np.ndarray:
    import imagecodecs

    return getattr(imagecodecs, f"{codec}_decode")(path.read_bytes())


def _in_16_bits(values: np.ndarray, top: int) -> np.ndarray:
    return (values.astype(np.float32) * (65535 / top)).round().clip(0, 65535).astype(np.uint16)


def _boxes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(BOXES)


def _avif_bits(path: Path) -> int:
    """From the decoder's configuration (AV1 ISOBMFF binding, section 2.3)."""
    boxes = _boxes(path)
    start = boxes.find(b"av1C")
    flags = boxes[start + 6] if 0 <= start < len(boxes) - 6 else 0
    return 8 if not flags & 0x40 else 12 if flags & 0x20 else 10


def _jpeg2000_bits(path: Path) -> int:
    """From the codestream's first component (ISO/IEC 15444-1, A.5.1)."""
    boxes = _boxes(path)
    start = boxes.find(b"\xff\x4f\xff\x51")
    return (boxes[start + 42] & 0x7F) + 1 if 0 <= start < len(boxes) - 42 else 8


def _ppm_top(image: ImageFile) -> int:
    """The largest value of a binary PPM whose samples Pillow has to scale."""
    decoder, _, _, arguments = image.tile[0]
    return arguments[1] if decoder == "ppm" and isinstance(arguments, tuple) else 255


Color = tuple[int, int]


def _color_of(path: Path, kind: str) -> dict[bytes, bytes] | Color | None:
    """What a file says about its colours other than by a profile: PNG's chunks, or H.273's numbers."""
    if kind == "PNG":
        return png.head_chunks(path)
    if kind not in ("AVIF", "HEIF"):
        return None
    boxes = _boxes(path)
    start = boxes.find(b"colrnclx") + 8
    return struct.unpack_from(">HH", boxes, start) if start > 8 and b"colrprof" not in boxes else None


def _in_srgb(picture: Picture, color: dict[bytes, bytes] | Color | None) -> Picture:
    """In sRGB's curve, and a profile where the primaries are others."""
    if color is None:
        return picture
    values = picture.pixels.numpy()
    changed, profile = png.apply_color(values, color) if isinstance(color, dict) else from_code_points(values, *color)
    if changed is not values:
        picture = replace(picture, pixels=torch.from_numpy(np.ascontiguousarray(changed, np.float32)).clamp(0, 1))
    return replace(picture, icc_profile=picture.icc_profile or profile)


def decoded(path: Path, read: Callable[[Path], Iterator[T]]) -> Iterator[T]:
    """One picture after the other; what goes wrong is said of the file."""
    with said_of(path):
        pictures = read(path)
    while True:
        with said_of(path):
            picture = next(pictures, None)
        if picture is None:
            return
        yield picture


class _PixelLimit:
    """Pillow's limit of pixels, a global of the process, is MAX_PIXELS while any thread reads here, as callers compare
    a picture with the free memory. Then it is as before."""

    def __init__(self):
        self.lock, self.readers, self.before = threading.Lock(), 0, Image.MAX_IMAGE_PIXELS

    def __enter__(self) -> None:
        with self.lock:
            if self.readers == 0:
                self.before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS
            self.readers += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.readers -= 1
            if self.readers == 0:
                Image.MAX_IMAGE_PIXELS = self.before


_PIXEL_LIMIT = _PixelLimit()


@contextmanager
def said_of(path: Path) -> Iterator[None]:
    """Whatever a decoder raises becomes a UserError of one sentence; its warnings about damaged parts are not shown."""
    log = logging.getLogger("tifffile")
    was_disabled, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings(), _PIXEL_LIMIT:
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except UnreadableError as error:
        raise UserError(f"{path} {error}") from error
    except UnidentifiedImageError as error:
        formats = "a PNG, JPEG, WebP, AVIF, GIF or TIFF file"
        raise UserError(f"{path} is not a supported picture: choose {formats}.") from error
    except (Image.DecompressionBombError, MemoryError) as error:
        raise UserError(f"{path} is too large to read safely: split it into parts.") from error
    except Exception as error:  # decoders of many makers: on a damaged file they raise anything
        if isinstance(error, OSError) and error.errno and error.filename:
            raise UserError(f"{path} cannot be read ({error.strerror}): check the file and its permissions.") from error
        reason = " ".join(str(error).split())[:150].rstrip(".:") or type(error).__name__
        if "support" in reason.lower():
            raise UserError(f"{path} cannot be read ({reason}): save it as PNG or plain TIFF first.") from error
        raise UserError(f"{path} is broken or truncated ({reason}): {COPY_AGAIN}") from error
    finally:
        log.disabled = was_disabled
