"""Reading and writing picture files: any mode and depth in, the same depth, alpha and colour profile out."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .errors import UserError

SIDE_LIMITS = {".jpg": 65_535, ".jpeg": 65_535, ".webp": 16_383}
WRITABLE = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
DEEP = (".png", ".tif", ".tiff")
MAX_PIXELS = 2**31


@dataclass(frozen=True)
class Picture:
    """A picture in memory.

    pixels: (3, H, W) float32 in [0, 1]; alpha: (1, H, W) likewise, or None; bits: 8 or 16, the source's
    depth; icc_profile: of the pixels' RGB space, where the file had one.
    """

    pixels: Tensor
    alpha: Tensor | None = None
    bits: int = 8
    icc_profile: bytes | None = None


def read_picture(path: Path) -> Picture:
    """Read the first frame of any file that Pillow knows, with EXIF rotation applied.

    16 bits a channel are kept for PNG and TIFF; CMYK goes through its own profile to sRGB.
    Raises UserError for a file that is missing, empty, cut short or no picture.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: check the name.")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes): copy or download it again.")
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{path} has {image.width} x {image.height} px, which is too large: cut it into parts.")
            return _deep_picture(path, image) or from_pillow(image)
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not a picture that can be read: choose PNG, JPEG, WebP or TIFF.") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} is too large to be read safely: cut it into parts.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is broken or cut short ({error}): copy or download it again.") from error


def _deep_picture(path: Path, image: Image.Image) -> Picture | None:
    """16-bit and float files, which Pillow would reduce to 8 bits or one channel; None for all others."""
    if image.format == "PNG" and _png_depth(path) == 16:
        import imagecodecs

        values = imagecodecs.png_decode(path.read_bytes())
    elif image.format == "TIFF" and max(image.tag_v2.get(258, (8,))) > 8:  # pyright: ignore[reportAttributeAccessIssue]
        import tifffile

        values = tifffile.imread(path, key=0)
        if image.tag_v2.get(284) == 2 and values.ndim == 3:  # pyright: ignore[reportAttributeAccessIssue] (planes)
            values = np.moveaxis(values, 0, -1)
    else:
        return None
    values = values[..., None] if values.ndim == 2 else values
    scale = np.iinfo(values.dtype).max if values.dtype.kind == "u" else 1
    channels = torch.from_numpy(np.moveaxis(values.astype(np.float32) / scale, -1, 0).clip(0, 1).copy())
    channels = _turned(channels, image.getexif().get(0x0112, 1))
    color = channels[: 3 if len(channels) >= 3 else 1].expand(3, -1, -1).contiguous()
    alpha = channels[-1:] if len(channels) in (2, 4) else None
    return Picture(color, alpha, 16, image.info.get("icc_profile"))


def _png_depth(path: Path) -> int:
    """Bits a channel, from the header: byte 24 of every PNG file."""
    with path.open("rb") as file:
        return file.read(25)[24]


def _turned(channels: Tensor, orientation: int) -> Tensor:
    """EXIF orientation 1 to 8 undone on (C, H, W)."""
    if orientation >= 5:
        channels = channels.transpose(-1, -2)
    flips = {2: (-1,), 3: (-1, -2), 4: (-2,), 6: (-1,), 7: (-1, -2), 8: (-2,)}
    return channels.flip(flips[orientation]) if orientation in flips else channels


def from_pillow(image: Image.Image) -> Picture:
    """A Pillow picture of any mode, with EXIF rotation applied; CMYK goes through its own profile to sRGB."""
    image = ImageOps.exif_transpose(image)
    profile = image.info.get("icc_profile")
    if image.mode == "CMYK":
        return Picture(_channels(_from_cmyk(image, profile)))
    if image.mode in ("L", "1", "LA", "LAB", "YCbCr", "I", "F"):
        profile = None  # a profile of another colour space than the RGB it becomes
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        channels = _channels(image.convert("RGBA"))
        return Picture(channels[:3], channels[3:], icc_profile=profile)
    return Picture(_channels(image.convert("RGB")), icc_profile=profile)


def _from_cmyk(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile is None:
        return image.convert("RGB")
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except ImageCms.PyCMSError:
        converted = None
    return converted or image.convert("RGB")


def _channels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def to_pillow(picture: Picture) -> Image.Image:
    """RGB, or RGBA where the picture has alpha, in 8 bits."""
    image = Image.fromarray(_values(picture, picture.alpha is not None, np.uint8))
    if picture.icc_profile is not None:
        image.info["icc_profile"] = picture.icc_profile
    return image


def write_picture(path: Path, picture: Picture, quality: int = 95) -> None:
    """Write PNG, JPEG, WebP or TIFF by the name's ending; the file appears whole or not at all.

    16 bits and alpha are kept where the format has them; JPEG gets a white ground. `quality` is JPEG's and
    WebP's, 1 to 100. Raises UserError for an unknown ending, a size that the format cannot hold, values
    that are not finite, or a place that cannot be written.
    """
    suffix = path.suffix.lower()
    require_writable(path, *picture.pixels.shape[-2:])
    if not torch.isfinite(picture.pixels).all():
        raise UserError(f"{path} was not written: the picture holds values that are not finite numbers.")
    write_whole(path, lambda temporary: _encode(temporary, suffix, picture, quality))


def require_writable(path: Path, height: int, width: int) -> None:
    """Raise UserError where the name's ending is none that can be written, or cannot hold so many pixels."""
    suffix = path.suffix.lower()
    if suffix not in WRITABLE:
        raise UserError(f"{path} has an ending that cannot be written: choose one of {', '.join(WRITABLE)}.")
    if max(height, width) > SIDE_LIMITS.get(suffix, MAX_PIXELS):
        raise UserError(f"{path} cannot hold {width} x {height} px in {suffix[1:]} format: choose png or tif.")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """write(a temporary path), then the rename: the file appears whole or not at all."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise UserError(f"{path} cannot be written ({reason}): choose another place or make room.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _encode(path: Path, suffix: str, picture: Picture, quality: int) -> None:
    has_alpha = picture.alpha is not None and suffix not in (".jpg", ".jpeg")
    values = _values(picture, has_alpha, np.uint16 if picture.bits == 16 and suffix in DEEP else np.uint8)
    if values.dtype == np.uint16 and suffix == ".png":
        import imagecodecs

        path.write_bytes(imagecodecs.png_encode(values))
    elif values.dtype == np.uint16:
        import tifffile

        extra = ["unassalpha"] if has_alpha else None
        tifffile.imwrite(
            path,
            values,
            photometric="rgb",
            extrasamples=extra,
            compression="zlib",
            predictor=True,
            iccprofile=picture.icc_profile,
        )
    else:
        is_tiff = suffix in (".tif", ".tiff")
        settings: dict[str, Any] = {"compression": "tiff_adobe_deflate"} if is_tiff else {"quality": quality}
        Image.fromarray(values).save(path, icc_profile=picture.icc_profile, **settings)


def _values(picture: Picture, has_alpha: bool, kind: type[np.unsignedinteger]) -> np.ndarray:
    """(H, W, 3 or 4) integers, rounded."""
    pixels = picture.pixels
    if picture.alpha is not None and not has_alpha:
        pixels = pixels * picture.alpha + 1 - picture.alpha
    channels = torch.cat([pixels, picture.alpha]) if has_alpha and picture.alpha is not None else pixels
    scaled = (channels.clamp(0, 1) * np.iinfo(kind).max).round()
    return np.ascontiguousarray(scaled.permute(1, 2, 0).cpu().numpy().astype(kind))
