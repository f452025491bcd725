"""Similarity of two pictures, and the amount of fine detail in one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)


def psnr(image: Tensor, reference: Tensor, border: int = 8) -> float:
    """Peak signal-to-noise ratio in dB over RGB, (3, H, W) in [0, 1], without `border` px on each side."""
    inside = (..., slice(border, -border), slice(border, -border)) if border else (...,)
    mse = (image[inside].double() - reference[inside].double()).square().mean()
    return float(-10 * torch.log10(mse.clamp_min(1e-12)))


def grey(image: Tensor) -> Tensor:
    """(..., 3, H, W) -> (..., H, W), the luma of BT.601."""
    return torch.einsum("...chw,c->...hw", image, torch.tensor(LUMA, dtype=image.dtype, device=image.device))


def ssim(image: Tensor, reference: Tensor, border: int = 8) -> float:
    """Structural similarity in grey, both (3, H, W) in [0, 1], without `border` px on each side; at most 1.

    Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to Structural Similarity",
    2004: Gaussian window of 11 px, sigma 1.5, at positions inside the picture, so sides from 11 + 2 border px.
    """
    inside = (..., slice(border, -border), slice(border, -border)) if border else (...,)
    x, y = (grey(picture[inside].double())[None, None] for picture in (image, reference))
    taps = torch.exp(-0.5 * (torch.arange(-5, 6, dtype=torch.float64) / 1.5) ** 2)
    window = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
    mean_x, mean_y = F.conv2d(x, window), F.conv2d(y, window)
    variance_x = F.conv2d(x * x, window) - mean_x**2
    variance_y = F.conv2d(y * y, window) - mean_y**2
    covariance = F.conv2d(x * y, window) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float((luminance * (2 * covariance + c2) / (variance_x + variance_y + c2)).mean())


def high_frequency_power(image: Tensor, above: float = 0.25) -> float:
    """Power of a picture (3, H, W), in grey, at radial frequencies over `above` times the Nyquist frequency."""
    luma = grey(image.double())
    spectrum = torch.fft.fft2(luma - luma.mean(), norm="ortho").abs().square()
    vertical = torch.fft.fftfreq(luma.shape[0], dtype=torch.float64)[:, None]
    horizontal = torch.fft.fftfreq(luma.shape[1], dtype=torch.float64)[None, :]
    high = torch.sqrt(vertical**2 + horizontal**2) > above * 0.5
    return float(spectrum[high].sum())
