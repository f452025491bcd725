"""Writing picture files: the depth, alpha and colour profile that the format has room for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import UserError
from .picture import MAX_PIXELS, Picture, as_integers
from .whole import write_whole

SIDE_LIMITS = {".jpg": 65_535, ".jpeg": 65_535, ".webp": 16_383}
WRITABLE = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
DEEP = (".png", ".tif", ".tiff")


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


def _encode(path: Path, suffix: str, picture: Picture, quality: int) -> None:
    has_alpha = picture.alpha is not None and suffix not in (".jpg", ".jpeg")
    values = as_integers(picture, has_alpha, np.uint16 if picture.bits == 16 and suffix in DEEP else np.uint8)
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
