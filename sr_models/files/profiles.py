"""Colour spaces: what is not RGB becomes sRGB; RGB of other primaries gets a profile.

Sources: IEC 61966-2-1 (sRGB), ICC.1:2022 (profiles), CIE 15 (Lab), ITU-T H.273 (code points of cICP and nclx).
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
from PIL import Image, ImageCms


class UnreadableError(Exception):
    """A file that cannot be decoded correctly. The message continues after the file's name: 'holds HDR values'."""


D50 = (0.9642, 1.0, 0.8249)
XYZ_D50_TO_SRGB = np.array(  # Bradford-adapted inverse of sRGB's matrix
    [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
)
Chromaticities = tuple[float, ...]  # x, y of white, red, green and blue
SRGB: Chromaticities = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
PRIMARIES: dict[int, Chromaticities] = {
    1: SRGB,
    9: (0.3127, 0.3290, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
LIKE_SRGB = (1, 6, 13, 14, 15)  # sRGB's curve, and the cameras' of BT.709, 601 and 2020, which are shown with it
LINEAR = 8
HDR_CURVES = {16: "PQ", 18: "HLG"}
GAMMAS = {4: 2.2, 5: 2.8}


def encode_srgb(light: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] -> sRGB values; beyond 1 the curve goes on, negative light mirrors it."""
    size = np.abs(light)
    curved = 1.055 * np.maximum(size, 0.0031308) ** (1 / 2.4) - 0.055
    return np.copysign(np.where(size <= 0.0031308, 12.92 * size, curved), light).astype(np.float32)


def decode_srgb(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((np.maximum(values, 0.04045) + 0.055) / 1.055) ** 2.4)


def space_of(profile: bytes | None) -> str:
    """A profile's colour space ('RGB', 'GRAY', 'CMYK', ...); '' where it is no profile."""
    if profile is None or len(profile) < 132 or profile[36:40] != b"acsp":
        return ""
    return profile[16:20].decode("latin-1").strip()


def rgb_profile(profile: bytes | None) -> bytes | None:
    """The profile unless it is one of another colour space, as converted files may carry along."""
    return profile if space_of(profile) in ("RGB", "") else None


def grey_to_srgb(values: np.ndarray, profile: bytes) -> np.ndarray:
    """Grey values in [0, 1] of a grey profile -> those of sRGB's greys. Unchanged where it has no curve."""
    curve = _tag(profile, b"kTRC")
    try:
        return encode_srgb(_light(values, curve)) if curve else values
    except (struct.error, ValueError):
        return values


def _tag(profile: bytes, name: bytes) -> bytes:
    (count,) = struct.unpack_from(">I", profile, 128)
    for number in range(min(count, 100)):
        entry = profile[132 + 12 * number : 144 + 12 * number]
        if entry[:4] == name and len(entry) == 12:
            start, size = struct.unpack_from(">II", entry, 4)
            return profile[start : start + size]
    return b""


def _light(values: np.ndarray, curve: bytes) -> np.ndarray:
    """Through a curveType or parametricCurveType (ICC.1 10.6 and 10.18)."""
    if curve[:4] == b"curv":
        (count,) = struct.unpack_from(">I", curve, 8)
        table = np.frombuffer(curve, ">u2", count, 12).astype(np.float64)
        if count == 0:
            return values
        if count == 1:
            return values ** (table[0] / 256)
        return np.interp(values, np.linspace(0, 1, count), table / 65535)
    if curve[:4] == b"para":
        kind = struct.unpack_from(">H", curve, 8)[0]
        return _parametric(values, kind, np.frombuffer(curve, ">i4", (1, 3, 4, 5, 7)[kind], 12) / 65536)
    raise ValueError("an unknown kind of curve")


def _parametric(values: np.ndarray, kind: int, numbers: np.ndarray) -> np.ndarray:
    gamma, a, b = numbers[0], *(numbers[1:3] if kind else (1.0, 0.0))
    power = np.maximum(a * values + b, 0) ** gamma
    if kind in (0, 1, 2):
        lift = numbers[3] if kind == 2 else 0
        return np.where(values >= (-b / a if kind else 0), power + lift, lift)
    slope, start = numbers[3:5]
    lift, foot = numbers[5:7] if kind == 4 else (0, 0)
    return np.where(values >= start, power + lift, slope * values + foot)


def cmyk_to_srgb(ink: np.ndarray, profile: bytes | None) -> np.ndarray:
    """(H, W, 4) ink, uint8 or uint16 and 0 is none -> (H, W, 3) of the same kind; without a profile of CMYK that
    works, (1 - ink) (1 - black)."""
    converted = _through_profile(ink, profile or b"") if space_of(profile) == "CMYK" else None
    if converted is not None:
        return converted
    top = np.iinfo(ink.dtype).max
    light = 1 - ink.astype(np.float32) / top
    return (light[..., :3] * light[..., 3:] * top).round().astype(ink.dtype)


def _through_profile(ink: np.ndarray, profile: bytes) -> np.ndarray | None:
    """Pillow's conversion has 8 bits, imagecodecs' 16; both call LittleCMS."""
    if ink.dtype == np.uint8:
        image = Image.frombytes("CMYK", (ink.shape[1], ink.shape[0]), np.ascontiguousarray(ink).tobytes())
        try:
            source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            return None
        return np.asarray(converted)
    import imagecodecs

    spaces: dict[str, Any] = {"colorspace": "cmyk", "outcolorspace": "rgb", "outdtype": ink.dtype}
    try:
        return imagecodecs.cms_transform(np.ascontiguousarray(ink), profile, imagecodecs.cms_profile("srgb"), **spaces)
    except RuntimeError:
        return None


def lab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """(H, W, 3) L* in [0, 100], a*, b* under D50 -> sRGB; colours that sRGB does not have lie outside [0, 1]."""
    middle = (lab[..., 0] + 16) / 116
    roots = np.stack([middle + lab[..., 1] / 500, middle, middle - lab[..., 2] / 200], axis=-1)
    xyz = np.where(roots > 6 / 29, roots**3, 3 * (6 / 29) ** 2 * (roots - 4 / 29)) * np.array(D50)
    return encode_srgb(xyz @ XYZ_D50_TO_SRGB.T)


def profile_of(chromaticities: Chromaticities) -> bytes | None:
    """A profile of RGB with sRGB's curve and these primaries; None for sRGB's own, or where they are invalid."""
    if np.allclose(chromaticities, SRGB, atol=0.002):
        return None
    import imagecodecs

    white, *primaries = ((x, y, 1.0) for x, y in zip(chromaticities[::2], chromaticities[1::2], strict=True))
    curve = (decode_srgb(np.linspace(0, 1, 1024)) * 65535).round().astype(np.uint16)
    flat = [value for primary in primaries for value in primary]
    try:
        return imagecodecs.cms_profile("rgb", whitepoint=white, primaries=flat, transferfunction=curve)
    except RuntimeError:  # invalid primaries
        return None


def to_srgb_curve(values: np.ndarray, gamma: float) -> np.ndarray:
    """Values that are light to the power 1 / gamma -> sRGB's curve; those of about 2.2 already have it, and an
    absurd gamma is ignored."""
    return values if abs(gamma - 2.2) < 0.12 or not 0.1 < gamma < 10 else encode_srgb(values**gamma)


def from_code_points(values: np.ndarray, primaries: int, curve: int) -> tuple[np.ndarray, bytes | None]:
    """Values and profile of RGB that H.273's numbers describe. Raises UnreadableError for HDR and unknown ones."""
    if curve in HDR_CURVES:
        raise UnreadableError(
            f"holds HDR values ({HDR_CURVES[curve]}), which the models do not support: convert it to SDR first."
        )
    if curve not in (2, LINEAR, *LIKE_SRGB, *GAMMAS) or primaries not in (2, 5, 6, 7, *PRIMARIES):
        raise UnreadableError(f"has an unknown colour space (H.273: {primaries}, {curve}): convert it to sRGB first.")
    gamma = 1.0 if curve == LINEAR else GAMMAS.get(curve, 2.2)
    return to_srgb_curve(values, gamma), profile_of(PRIMARIES.get(primaries, SRGB))
