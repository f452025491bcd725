"""How near a picture is to another one, and how much fine detail it has."""

from __future__ import annotations

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)


def psnr(image: Tensor, reference: Tensor, border: int = 8) -> float:
    """Peak signal-to-noise ratio in dB over RGB, (3, H, W) in [0, 1], `border` px cut on each side."""
    inside = (..., slice(border, -border), slice(border, -border)) if border else (...,)
    mse = (image[inside].double() - reference[inside].double()).square().mean()
    return float(-10 * torch.log10(mse.clamp_min(1e-12)))


def grey(image: Tensor) -> Tensor:
    """(..., 3, H, W) -> (..., H, W), the luma of BT.601."""
    return torch.einsum("...chw,c->...hw", image, torch.tensor(LUMA, dtype=image.dtype, device=image.device))


def high_frequency_power(image: Tensor, above: float = 0.25) -> float:
    """Power of the grey picture at radial frequencies above `above` of Nyquist; (3, H, W), no unit."""
    luma = grey(image.double())
    spectrum = torch.fft.fft2(luma - luma.mean(), norm="ortho").abs().square()
    vertical = torch.fft.fftfreq(luma.shape[0], dtype=torch.float64)[:, None]
    horizontal = torch.fft.fftfreq(luma.shape[1], dtype=torch.float64)[None, :]
    high = torch.sqrt(vertical**2 + horizontal**2) > above * 0.5
    return float(spectrum[high].sum())
