"""A picture in memory, as tensors and as a Pillow image."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

MAX_PIXELS = 2**31


@dataclass(frozen=True)
class Picture:
    """A picture in memory.

    pixels: (3, H, W) float32 in [0, 1]; alpha: (1, H, W), the same, or None; bits: 8 or 16, the source's
    depth; icc_profile: for the pixels' RGB space, if the file has one.
    """

    pixels: Tensor
    alpha: Tensor | None = None
    bits: int = 8
    icc_profile: bytes | None = None


def from_pillow(image: Image.Image) -> Picture:
    """Convert a Pillow image of any mode, with EXIF rotation applied; CMYK is converted to sRGB by its own profile."""
    image = ImageOps.exif_transpose(image)
    profile = image.info.get("icc_profile")
    if image.mode == "CMYK":
        return Picture(_channels(_from_cmyk(image, profile)))
    if image.mode in ("L", "1", "LA", "LAB", "YCbCr", "I", "F"):
        profile = None  # a profile for another colour space than the RGB it is converted to
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
    """8-bit RGB, or RGBA if the picture has alpha."""
    image = Image.fromarray(as_integers(picture, picture.alpha is not None, np.uint8))
    if picture.icc_profile is not None:
        image.info["icc_profile"] = picture.icc_profile
    return image


def as_integers(picture: Picture, has_alpha: bool, kind: type[np.unsignedinteger]) -> np.ndarray:
    """(H, W, 3 or 4) integers, rounded."""
    pixels = picture.pixels
    if picture.alpha is not None and not has_alpha:
        pixels = pixels * picture.alpha + 1 - picture.alpha
    channels = torch.cat([pixels, picture.alpha]) if has_alpha and picture.alpha is not None else pixels
    scaled = (channels.clamp(0, 1) * np.iinfo(kind).max).round()
    return np.ascontiguousarray(scaled.permute(1, 2, 0).cpu().numpy().astype(kind))
