"""Making LR twins."""

from __future__ import annotations

import numpy as np
import torch
from onestep_sr.sr_models.canvas.degradation import Degradation, gaussian_kernel
from onestep_sr.sr_models.training.data import CropPairs
from places import PHOTOS


def test_degradation_keeps_the_picture_in_place() -> None:
    pairs = CropPairs(PHOTOS, 64, Degradation(clean=0), 2)
    errors = {}
    for shift in (-1, 0, 1):
        total = 0.0
        for index in range(24):
            pair = pairs[index]
            small = pair["hr"].float().unfold(1, 4, 4).unfold(2, 4, 4).mean((-1, -2))
            total += float((torch.roll(small, shift, -1) - pair["lr"].float())[:, 2:-2, 2:-2].square().mean())
        errors[shift] = total
    assert errors[0] < 0.6 * min(errors[-1], errors[1])


def test_blur_kernel_is_a_gaussian() -> None:
    kernel = gaussian_kernel(1.5, 1.5, 0.7).double().numpy()
    radius = len(kernel) // 2
    axis = np.exp(-0.5 * (np.arange(-radius, radius + 1) / 1.5) ** 2)
    assert np.abs(kernel - np.outer(axis, axis) / axis.sum() ** 2).max() < 1e-7
