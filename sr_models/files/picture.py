"""A picture in memory, as tensors and as a Pillow image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageCms
from torch import Tensor

from .metadata import Metadata
from .profiles import UnreadableError, cmyk_to_srgb, grey_to_srgb, rgb_profile, space_of

MAX_PIXELS = 2**31
OPAQUE_MODES = {"LA": "L", "La": "L", "PA": "RGB", "RGBA": "RGB", "RGBa": "RGB"}


@dataclass(frozen=True)
class Picture:
    """A picture in memory, upright.

    pixels: (3, H, W) float32 in [0, 1]; alpha: (1, H, W), the same, or None. bits: 8, 16, or 32 for floating point,
    the source's depth. excess: (3, H, W), the values of a floating-point source outside [0, 1], to be added to the
    pixels; None if there are none. icc_profile: for the pixels' RGB space, if it is not sRGB or the file has one.
    duration: milliseconds that a frame of an animation is shown. notices: sentences about what the file has and this
    picture does not.
    """

    pixels: Tensor
    alpha: Tensor | None = None
    bits: int = 8
    icc_profile: bytes | None = None
    excess: Tensor | None = None
    metadata: Metadata = field(default_factory=Metadata)
    duration: float | None = None
    notices: tuple[str, ...] = ()


Kind = Literal["single", "animation", "pages"]


@dataclass(frozen=True)
class PictureSequence:
    """The content of one file: a single picture, the whole frames of an animation, or pages, which may differ in size.

    Iterating decodes one picture at a time, and may be done again; it raises UserError where the file is broken.
    plays: how often an animation is shown, 0 means forever. largest: pixels of the largest picture, 0 where the header
    does not say.
    """

    kind: Kind
    count: int
    frames: Callable[[], Iterator[Picture]]
    plays: int = 0
    largest: int = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Picture]:
        return self.frames()


def from_pillow(image: Image.Image) -> Picture:
    """Convert a Pillow image of any mode, with EXIF rotation applied. Grey with a profile and CMYK become sRGB."""
    profile = None if image.mode in ("CMYK", "LAB") else image.info.get("icc_profile")
    values, alpha = _split_alpha(image)
    picture = from_values(values if alpha is None else np.concatenate([values, alpha], axis=-1), profile)
    return turned(picture, orientation_of(image))


def orientation_of(image: Image.Image) -> int:
    """EXIF's, or that of XMP; 1 where it cannot be read. JPEG XL's decoder has turned the picture already."""
    if image.format == "JXL":
        return 1
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF, which Pillow meets with errors of many kinds
        return 1


def _split_alpha(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W, 1 or 3) values and (H, W, 1) alpha, integers or float32 in [0, 1]."""
    if image.mode in OPAQUE_MODES or "transparency" in image.info:
        is_grey = OPAQUE_MODES.get(image.mode, image.mode) in ("L", "1")
        channels = np.asarray(image.convert("RGBA"))
        return channels[..., : 1 if is_grey else 3], channels[..., 3:]
    return DECODERS.get(image.mode, lambda image: np.asarray(image.convert("RGB")))(image), None


def _from_lab(image: Image.Image) -> np.ndarray:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    return np.asarray(converted)


def _ink(image: Image.Image) -> np.ndarray:
    """Pillow inverts the ink of every JPEG, as Adobe's programs write it; those of others are as they are."""
    ink = np.asarray(image)
    return 255 - ink if image.format in ("JPEG", "MPO") and "adobe" not in image.info else ink


def _grey_of_16_bits(image: Image.Image) -> np.ndarray:
    return np.asarray(image).clip(0, 65535)[..., None].astype(np.uint16)


DECODERS: dict[str, Callable[[Image.Image], np.ndarray]] = {
    "1": lambda image: np.asarray(image.convert("L"))[..., None],
    "L": lambda image: np.asarray(image)[..., None],
    "F": lambda image: np.asarray(image)[..., None].astype(np.float32),
    "CMYK": lambda image: cmyk_to_srgb(_ink(image), image.info.get("icc_profile")),
    "LAB": _from_lab,
    **dict.fromkeys(("I", "I;16", "I;16L", "I;16B", "I;16N"), _grey_of_16_bits),
}


def from_values(values: np.ndarray, profile: bytes | None = None) -> Picture:
    """(H, W, C) uint8, uint16 or floating point, C of grey, grey and alpha, RGB or RGBA. A grey profile is applied,
    one of RGB is kept for RGB. Raises UnreadableError for values that are not finite."""
    is_float = values.dtype.kind == "f"
    channels = values.astype(np.float32) / (1 if is_float else np.iinfo(values.dtype).max)
    if is_float and not np.isfinite(channels.sum(dtype=np.float64)):
        raise UnreadableError("holds values that are not finite numbers (NaN or infinite): repair it first.")
    alpha = channels[..., -1:] if channels.shape[-1] in (2, 4) else None
    color = channels if alpha is None else channels[..., :-1]
    if color.shape[-1] == 1 and space_of(profile) == "GRAY":
        color = grey_to_srgb(color, profile or b"").astype(np.float32)
    pixels = _planes(color).expand(3, -1, -1).contiguous()
    picture = Picture(
        pixels,
        None if alpha is None else _planes(alpha).clamp(0, 1),
        bits=32 if is_float else 8 * values.dtype.itemsize,
        icc_profile=rgb_profile(profile) if color.shape[-1] == 3 else None,
    )
    return in_range(picture) if is_float else picture


def _planes(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 0)))


def in_range(picture: Picture) -> Picture:
    """Pixels clipped to [0, 1], what is beyond as `excess`, and a notice of it."""
    clipped = picture.pixels.clamp(0, 1)
    if torch.equal(clipped, picture.pixels):
        return picture
    low, high = picture.pixels.min().item(), picture.pixels.max().item()
    notice = (
        f"The file contains values from {low:.3g} to {high:.3g}; values outside 0 to 1 do not go through the model "
        "and are kept in floating-point TIFF files only."
    )
    excess = picture.pixels - clipped
    return replace(picture, pixels=clipped, excess=excess, notices=(*picture.notices, notice))


def turned(picture: Picture, orientation: int) -> Picture:
    """Undo EXIF orientation 1 to 8."""
    if orientation not in range(2, 9):
        return picture

    flips = {2: (-1,), 3: (-1, -2), 4: (-2,), 6: (-1,), 7: (-1, -2), 8: (-2,)}

    def upright(channels: Tensor) -> Tensor:
        channels = channels.transpose(-1, -2) if orientation >= 5 else channels
        return channels.flip(flips.get(orientation, ())).contiguous()

    parts = {name: getattr(picture, name) for name in ("pixels", "alpha", "excess")}
    return replace(picture, **{name: upright(part) for name, part in parts.items() if part is not None})


def to_pillow(picture: Picture) -> Image.Image:
    """8-bit RGB, or RGBA if the picture has alpha."""
    image = Image.fromarray(as_integers(picture, picture.alpha is not None, np.uint8))
    if picture.icc_profile is not None:
        image.info["icc_profile"] = picture.icc_profile
    return image


def as_integers(picture: Picture, has_alpha: bool, kind: type[np.unsignedinteger]) -> np.ndarray:
    """(H, W, 3 or 4) integers, rounded; alpha that is not wanted becomes a white background."""
    pixels = picture.pixels
    if picture.alpha is not None and not has_alpha:
        pixels = pixels * picture.alpha + 1 - picture.alpha
    channels = torch.cat([pixels, picture.alpha]) if has_alpha and picture.alpha is not None else pixels
    scaled = (channels.clamp(0, 1) * np.iinfo(kind).max).round()
    return np.ascontiguousarray(scaled.permute(1, 2, 0).cpu().numpy().astype(kind))


def as_floats(picture: Picture) -> np.ndarray:
    """(H, W, 3 or 4) float32, with what lies outside [0, 1]."""
    pixels = picture.pixels if picture.excess is None else picture.pixels + picture.excess
    channels = pixels if picture.alpha is None else torch.cat([pixels, picture.alpha])
    return np.ascontiguousarray(channels.permute(1, 2, 0).cpu().numpy().astype(np.float32))
