"""Write picture files, with the depth, alpha and colour profile that the format supports."""

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
    """Write PNG, JPEG, WebP or TIFF, depending on the file name's extension; the file is never partial.

    16 bits and alpha are kept if the format supports them; JPEG gets a white background. `quality` is for JPEG
    and WebP, 1 to 100. Raises UserError for an unknown extension, a size that the format does not support, values
    that are not finite, or a file that cannot be written.
    """
    suffix = path.suffix.lower()
    require_writable(path, *picture.pixels.shape[-2:])
    if not torch.isfinite(picture.pixels).all():
        raise UserError(f"{path} was not written: the picture contains values that are not finite numbers.")
    write_whole(path, lambda temporary: _encode(temporary, suffix, picture, quality))


def require_writable(path: Path, height: int, width: int) -> None:
    """Raises UserError if the extension is not supported, or the format does not support pictures of this size."""
    suffix = path.suffix.lower()
    if suffix not in WRITABLE:
        raise UserError(f"{path} has an extension that is not supported: choose one of {', '.join(WRITABLE)}.")
    if max(height, width) > SIDE_LIMITS.get(suffix, MAX_PIXELS):
        raise UserError(f"{path}: {suffix[1:]} files do not support {width} x {height} px. Choose png or tif.")


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
