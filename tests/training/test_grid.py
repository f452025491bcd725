"""The loss against a grid of 4 px."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onestep_sr.sr_models.training.grid import grid_loss
from torch import Tensor


def noise(seed: int = 0) -> Tensor:
    return torch.rand(4, 3, 148, 148, generator=torch.Generator().manual_seed(seed)) * 0.2 + 0.4


def by_hand(result: Tensor, hr: Tensor) -> float:
    """The same in float64, place by place."""

    def phases(pictures: Tensor) -> np.ndarray:
        x = pictures.double().numpy()
        mean = sum(x[..., i : i + 144, j : j + 144] for i in range(5) for j in range(5)) / 25
        fine = np.abs(x[..., 2:146, 2:146] - mean).mean(1)
        squares = fine.reshape(-1, 9, 16, 9, 16)
        share = ((squares + 0.5 / 255) / (squares.mean((2, 4), keepdims=True) + 0.5 / 255)).reshape(-1, 144, 144)
        return np.array([[share[:, i::4, j::4].mean() for j in range(4)] for i in range(4)])

    ratios = phases(result) / phases(hr)
    return float(ratios.std() / ratios.mean())


def test_the_loss_equals_its_formula() -> None:
    assert float(grid_loss(noise(1), noise(2))) == pytest.approx(by_hand(noise(1), noise(2)), rel=1e-4)


def test_a_grid_is_seen_and_grain_is_not() -> None:
    hr, grid = noise(), torch.zeros(4, 4)
    grid[1, 2] = 0.1
    dotted = hr + grid.repeat(37, 37)
    assert float(grid_loss(hr, hr)) == 0
    assert float(grid_loss(noise(1), hr)) < 0.03
    assert float(grid_loss(dotted, hr)) > 0.15


def test_a_grid_in_a_sky_counts_as_in_a_meadow() -> None:
    """A faint grid on a flat half costs more than the same on a grainy one, which hides it."""
    picture = noise()
    picture[..., :74] = 0.5
    grid = torch.zeros(4, 4)
    grid[1, 2] = 0.02
    sky, meadow = picture.clone(), picture.clone()
    sky[..., :72] += grid.repeat(37, 18)
    meadow[..., 76:] += grid.repeat(37, 18)
    assert float(grid_loss(sky, picture)) > 4 * float(grid_loss(meadow, picture))


def test_steps_down_the_gradient_remove_a_grid() -> None:
    hr, grid = noise(), torch.zeros(1, 1, 4, 4)
    grid[0, 0, 0, 3] = 0.1
    grid.requires_grad_(True)
    before = float(grid_loss(hr + grid.repeat(1, 1, 37, 37), hr).detach())
    optimizer = torch.optim.Adam([grid], lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        loss = grid_loss(hr + grid.repeat(1, 1, 37, 37), hr)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.2 * before
