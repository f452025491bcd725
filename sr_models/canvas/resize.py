"""Picture sizes: resampling, padding, and the target size for a scale. Pictures are (B, C, H, W)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError

MIN_SIDE = 8
MIN_SCALE, MAX_SCALE = 1.0, 8.0


def require_scale(scale: float) -> None:
    """Raise UserError for a scale out of bounds."""
    if not MIN_SCALE <= scale <= MAX_SCALE:
        raise UserError(f"Scale {scale:g} is out of range: choose one from {MIN_SCALE:g} to {MAX_SCALE:g}.")


def target_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """(round(scale height), round(scale width)). Raises UserError for a scale or size out of bounds."""
    require_scale(scale)
    if min(height, width) < MIN_SIDE:
        raise UserError(f"The picture is {width} x {height} px: it needs at least {MIN_SIDE} px a side.")
    return round(scale * height), round(scale * width)


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize to (H, W): bicubic, antialiased when shrinking. Returns the picture itself if the size is the same."""
    if tuple(image.shape[-2:]) == size:
        return image
    shrinks = size[0] < image.shape[-2] or size[1] < image.shape[-1]
    return F.interpolate(image, size=size, mode="bicubic", align_corners=False, antialias=shrinks)


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Pad right and bottom to the next multiple: mirrored, or repeating the last pixels if the picture is too small."""
    height, width = image.shape[-2:]
    down, right = -height % multiple, -width % multiple
    mirrors = down < height and right < width
    return F.pad(image, (0, right, 0, down), mode="reflect" if mirrors else "replicate")
