"""How much of a network's detail a result has: what lies in frequencies that the small picture cannot hold."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LOBES = 6  # of the sinc on either side; more make the edge between the bands sharper


def at_strength(result: Tensor, enlarged: Tensor, strength: float, factors: tuple[float, float]) -> Tensor:
    """Blend a result with the enlarged small picture above the small picture's own frequencies.

    result - (1 - strength) high(result - enlarged), where high keeps what is above the small picture's Nyquist
    frequency. Strength 1 is the result itself; at 0 nothing above that frequency comes from the network. Lower
    frequencies are the result's at any strength.

    Args:
        result, enlarged: (B, C, H, W).
        factors: the result's height and width divided by the small picture's.
    """
    if strength == 1:
        return result
    added = result - enlarged
    low = added
    for dim, factor in zip((-2, -1), factors, strict=True):
        low = _low(low, factor, dim)
    return result - (1 - strength) * (added - low)


def reach(factor: float) -> int:
    """The distance in px over which pixels of a result interact."""
    return math.ceil(LOBES * factor)


def _low(image: Tensor, factor: float, dim: int) -> Tensor:
    """Frequencies up to 1 / (2 factor) along one dimension: a sinc in a Hann window; borders are replicated."""
    if factor <= 1:
        return image
    taps = _taps(factor, image.shape[-3]).to(image)
    padding = (reach(factor), reach(factor), 0, 0) if dim == -1 else (0, 0, reach(factor), reach(factor))
    kernel = taps[:, :, None, :] if dim == -1 else taps[:, :, :, None]
    return F.conv2d(F.pad(image, padding, mode="replicate"), kernel, groups=image.shape[-3])


def _taps(factor: float, channels: int) -> Tensor:
    """(channels, 1, 2 reach + 1), the same for each channel; their sum is 1."""
    places = torch.arange(-reach(factor), reach(factor) + 1, dtype=torch.float64)
    window = 0.5 + 0.5 * torch.cos(math.pi * places / (reach(factor) + 1))
    taps = torch.sinc(places / factor) * window
    return (taps / taps.sum()).expand(channels, 1, -1)
