"""Colours under transparency, which a network must not see, and grey pictures, to which it must not add colour."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

RINGS = 3  # pixels around what is visible that are filled from their neighbours; further in, from afar
SMALLEST = 1e-6


def fill_transparent(pixels: Tensor, alpha: Tensor) -> Tensor:
    """Colours under alpha 0 replaced by those of the visible pixels around them.

    pixels (3, H, W) and alpha (1, H, W) in [0, 1] -> (3, H, W). Visible pixels keep their values exactly; what lies
    under alpha 0 has no influence at all. A picture that is wholly transparent becomes black.

    Near what is visible a pixel gets the mean of its eight neighbours, weighted by their alpha, ring by ring: an
    interpolation that reaches across the edge then finds nearly what it would find with premultiplied colours.
    Further away it comes from a pyramid of such means (push-pull; Gortler et al., The Lumigraph, 1996).
    """
    is_hidden = alpha <= 0
    if not is_hidden.any():
        return pixels
    known = torch.cat([torch.where(is_hidden, 0, pixels) * alpha, alpha])
    for _ in range(RINGS):
        known = _with_a_ring(known)
    filled = torch.where(known[3:] > 0, known[:3] / known[3:].clamp(min=SMALLEST), _from_afar(known))
    return torch.where(is_hidden, filled, pixels)


def _with_a_ring(known: Tensor) -> Tensor:
    """Premultiplied colours and their weight (4, H, W): where there is no weight, the mean of the neighbours."""
    padded = F.pad(known, (1, 1, 1, 1))
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    means = sums / sums[3:].clamp(min=SMALLEST)
    return torch.where(known[3:] > 0, known, means)


def _from_afar(known: Tensor) -> Tensor:
    """(4, H, W) -> (3, H, W): every pixel from the smallest cell of a pyramid that has weight, blended."""
    height, width = known.shape[-2:]
    if max(height, width) == 1:
        return known[:3]
    cells = F.avg_pool2d(known[None], 2, ceil_mode=True)[0]
    cells = torch.where(cells[3:] > 0, cells / cells[3:].clamp(min=SMALLEST), 0)
    coarse = torch.where(cells[3:] > 0, cells[:3], _from_afar(cells))
    return F.interpolate(coarse[None], (height, width), mode="bilinear", align_corners=False)[0]


def is_grey(pixels: Tensor) -> bool:
    """Whether R = G = B in every pixel of (3, H, W)."""
    return bool(torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[0], pixels[2]))


def to_grey(pixels: Tensor) -> Tensor:
    """(..., 3, H, W) -> the same with R = G = B: the luma of BT.601, in float64, so that greys keep their values."""
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    grey = (pixels.cpu().double() * luma[:, None, None]).sum(-3, keepdim=True)  # not every device has float64
    return grey.to(pixels.device, pixels.dtype).expand_as(pixels).contiguous()
