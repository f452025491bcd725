"""Marks of what an upscaler adds: upscalers whose fault is known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from onestep_sr.sr_models.canvas.resize import resize
from onestep_sr.sr_models.measures import artifacts as marks
from torch import Tensor

LR = torch.rand(1, 3, 40, 48, generator=torch.Generator().manual_seed(0))


def nearest(lr: Tensor) -> Tensor:
    return F.interpolate(lr, scale_factor=4, mode="nearest")


def bicubic(lr: Tensor) -> Tensor:
    return resize(lr, (lr.shape[-2] * 4, lr.shape[-1] * 4))


def test_nothing_is_added_by_nearest() -> None:
    found = marks.artifacts(nearest, [LR])
    assert (found.flat, found.grey, found.shift, found.back) == pytest.approx((0, 0, 0, 0), abs=1e-4)
    assert found.contrast == pytest.approx(0, abs=1e-4)
    assert marks.gradient(bicubic) < 1e-4


def test_noise_is_measured_in_levels() -> None:
    noise = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1)) * 2 / 255
    assert marks.flat(lambda lr: nearest(lr) + noise) == pytest.approx(2, rel=0.05)
    wide = torch.randn(1, 3, 192, 192, generator=torch.Generator().manual_seed(2)) * 3 / 255
    assert marks.gradient(lambda lr: bicubic(lr) + wide) == pytest.approx(3, rel=0.05)


def test_a_colour_cast_spreads_grey() -> None:
    cast = torch.tensor([0.0, 2.0, 5.0])[:, None, None] / 255
    assert marks.grey_spread(lambda lr: nearest(lr) + cast, LR) == pytest.approx(5, abs=1e-3)


def test_a_pattern_that_stays_in_place_shows_when_the_picture_moves() -> None:
    def stripes(lr: Tensor) -> Tensor:
        pattern = (torch.arange(lr.shape[-1] * 4) // 4 % 2).float() * 4 / 255
        return nearest(lr) + pattern

    # The shift of 2 LR px keeps these stripes of 2 LR px in place; stripes of 4 show in every other one.
    def wider(lr: Tensor) -> Tensor:
        pattern = (torch.arange(lr.shape[-1] * 4) // 8 % 2).float() * 4 / 255
        return nearest(lr) + pattern

    assert marks.shift(stripes, LR) == pytest.approx(0, abs=1e-3)
    assert marks.shift(wider, LR) == pytest.approx(4, abs=1e-3)


def test_brightening_is_seen_by_shrinking_back_and_contrast_by_cycles() -> None:
    assert marks.back(lambda lr: nearest(lr) + 3 / 255, LR) == pytest.approx(3, abs=1e-3)
    inner = 0.4 + LR * 0.2
    stronger = marks.contrast_growth(lambda lr: 0.5 + (nearest(lr) - 0.5) * 1.02, inner)
    assert stronger == pytest.approx(1.02**6 - 1, rel=1e-2)


def test_the_grid_mark() -> None:
    generator = torch.Generator().manual_seed(3)
    even = torch.rand(3, 272, 272, generator=generator)
    assert marks.grid(even) < 0.02
    pattern = torch.zeros(4, 4)
    pattern[0, 0] = 0.3
    assert marks.grid(even * 0.1 + pattern.repeat(68, 68)) > 0.3
    assert marks.grid(bicubic(LR)[0]) > 0.1  # bicubic enlargement is smoother between its samples
