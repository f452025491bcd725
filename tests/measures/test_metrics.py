"""Quality metrics, compared with the formulas in numpy, and on real photographs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from onestep_sr.sr_models.measures.metrics import high_frequency_power, psnr, ssim
from torch import Tensor


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# PSNR


def test_psnr_of_a_constant_error() -> None:
    assert psnr(torch.full((3, 40, 40), 0.6), torch.full((3, 40, 40), 0.5)) == pytest.approx(20, abs=1e-4)


def test_psnr_of_known_noise() -> None:
    clean = torch.full((3, 256, 256), 0.5, dtype=torch.float64)
    noisy = clean + 0.03 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert psnr(noisy, clean) == pytest.approx(-20 * math.log10(0.03), abs=0.05)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_the_border_does_not_count(measure) -> None:
    image = noise(3, 48, 40)
    framed = image.clone()
    framed[:, :8] = framed[:, -8:] = 0
    framed[:, :, :8] = framed[:, :, -8:] = 1
    assert measure(framed, image) == measure(image, image)
    assert measure(framed, image, border=0) < measure(image, image)


# SSIM


def ssim_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """Equation 13 of Wang et al. for each whole window, with central moments instead of raw ones."""
    distance = np.hypot(*np.mgrid[-5:6, -5:6])
    weight = np.exp(-(distance**2) / (2 * 1.5**2))
    weight /= weight.sum()
    values = []
    for a, b in zip(windows(x, 11), windows(y, 11), strict=True):
        mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
        variance_a, variance_b = (weight * (a - mean_a) ** 2).sum(), (weight * (b - mean_b) ** 2).sum()
        covariance = (weight * (a - mean_a) * (b - mean_b)).sum()
        above = (2 * mean_a * mean_b + 0.0001) * (2 * covariance + 0.0009)
        values.append(above / ((mean_a**2 + mean_b**2 + 0.0001) * (variance_a + variance_b + 0.0009)))
    return float(np.mean(values))


def windows(x: np.ndarray, side: int) -> np.ndarray:
    return sliding_window_view(x, (side, side)).reshape(-1, side, side)


@pytest.mark.parametrize("border", [0, 8])
def test_ssim_is_the_formula(border: int) -> None:
    x = noise(3, 31, 42)
    y = (0.7 * x + 0.3 * noise(3, 31, 42, seed=1)).clamp(0, 1)
    inside = slice(border, -border or None)
    luma = [np.tensordot((0.299, 0.587, 0.114), p.double().numpy(), 1)[inside, inside] for p in (x, y)]
    assert ssim(x, y, border) == pytest.approx(ssim_by_hand(*luma), abs=1e-9)
    assert 0 < ssim(x, y, border) < 1


def test_ssim_of_a_picture_with_itself_is_one() -> None:
    assert ssim(noise(3, 40, 40), noise(3, 40, 40)) == pytest.approx(1, abs=1e-12)


def test_ssim_of_constants_is_the_luminance_term() -> None:
    a, b = 0.3, 0.8
    expected = (2 * a * b + 0.0001) / (a * a + b * b + 0.0001)
    pictures = [torch.full((3, 40, 40), value, dtype=torch.float64) for value in (a, b)]
    assert ssim(*pictures) == pytest.approx(expected, abs=1e-9)


# Fine detail


@pytest.mark.parametrize(("down", "across", "counts"), [(0, 7, False), (0, 9, True), (5, 5, False), (6, 6, True)])
def test_high_frequency_power_of_a_sine(down: int, across: int, counts: bool) -> None:
    """A quarter of Nyquist is 8 periods on 64 px, in any direction; the power is the sum of squares, N^2 a^2 / 2."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    image = (0.5 + 0.1 * torch.sin(2 * math.pi * (down * y + across * x) / 64)).expand(3, -1, -1)
    expected = 64**2 * 0.1**2 / 2 if counts else 0
    assert high_frequency_power(image) == pytest.approx(expected, rel=1e-4, abs=1e-6)
