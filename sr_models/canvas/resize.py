"""Resampling and padding of pictures (B, C, H, W)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Enlarging = Literal["bicubic", "bilinear"]


def resize(image: Tensor, size: tuple[int, int], mode: Enlarging = "bicubic") -> Tensor:
    """Resize to (H, W), antialiased when shrinking. Returns the picture itself if the size is the same."""
    if tuple(image.shape[-2:]) == size:
        return image
    shrinks = size[0] < image.shape[-2] or size[1] < image.shape[-1]
    return F.interpolate(image, size=size, mode=mode, align_corners=False, antialias=shrinks)


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Pad right and bottom to the next multiple: mirrored, or repeating the last pixels if the picture is too small.
    Returns the picture itself if it needs none and is contiguous (networks may round differently on other strides)."""
    height, width = image.shape[-2:]
    down, right = -height % multiple, -width % multiple
    if down == right == 0 and image.is_contiguous():
        return image
    mirrors = down < height and right < width
    return F.pad(image, (0, right, 0, down), mode="reflect" if mirrors else "replicate")
