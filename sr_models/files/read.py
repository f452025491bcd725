"""Reading picture files of any mode and depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import UserError
from .picture import MAX_PIXELS, Picture, from_pillow


def read_picture(path: Path) -> Picture:
    """Read the first frame of any file that Pillow supports, with EXIF rotation applied.

    16 bits per channel are kept for PNG and TIFF; CMYK is converted to sRGB by its own profile.
    Raises UserError for a file that is missing, empty, truncated or not a picture.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: check the name.")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes): copy or download it again.")
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{path} has {image.width} x {image.height} px, too large: split it into parts.")
            return _deep_picture(path, image) or from_pillow(image)
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not a supported picture: choose a PNG, JPEG, WebP or TIFF file.") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} is too large to read safely: split it into parts.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is broken or truncated ({error}): copy or download it again.") from error


def _deep_picture(path: Path, image: Image.Image) -> Picture | None:
    """Read 16-bit and float files, which Pillow would reduce to 8 bits or one channel; None for all others."""
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
    channels = _upright(channels, image.getexif().get(0x0112, 1))
    color = channels[: 3 if len(channels) >= 3 else 1].expand(3, -1, -1).contiguous()
    alpha = channels[-1:] if len(channels) in (2, 4) else None
    return Picture(color, alpha, 16, image.info.get("icc_profile"))


def _png_depth(path: Path) -> int:
    """Bits per channel, from the header: byte 24 of every PNG file."""
    with path.open("rb") as file:
        return file.read(25)[24]


def _upright(channels: Tensor, orientation: int) -> Tensor:
    """Undo EXIF orientation 1 to 8 of (C, H, W)."""
    if orientation >= 5:
        channels = channels.transpose(-1, -2)
    flips = {2: (-1,), 3: (-1, -2), 4: (-2,), 6: (-1,), 7: (-1, -2), 8: (-2,)}
    return channels.flip(flips[orientation]) if orientation in flips else channels
