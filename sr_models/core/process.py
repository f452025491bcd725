"""Noise processes of diffusion models, and the clean latent from a network's raw prediction for each of them.

Every process z_t = alpha x_0 + sigma n becomes a straight path when z_t is divided by alpha + sigma. So one set of
equations for the path (1 - s) x_0 + s n, with s = sigma / (alpha + sigma), covers flow matching (where
alpha + sigma = 1) and the variance-preserving processes of Stable Diffusion 1 and 2 and SDXL. An Euler step on the
path is a DDIM step of these processes (arXiv 2010.02502, equation 13).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["flow", "epsilon", "v"]


def clean(prediction: Prediction, output: Tensor, z_t: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """x_0 from the network's output for z_t = alpha x_0 + sigma n.

    `flow`: the output is n - x_0 (and alpha + sigma = 1); `epsilon`: n; `v`: alpha n - sigma x_0 (arXiv 2202.00512).
    """
    if prediction == "v":
        return alpha * z_t - sigma * output
    if prediction == "epsilon":
        return (z_t - sigma * output) / alpha
    return z_t - sigma * output


def raw(prediction: Prediction, x_0: Tensor, z_t: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """The network's output for a clean latent: the inverse of `clean`, for hosts that only return x_0."""
    if prediction == "v":
        return (alpha * z_t - x_0) / sigma
    if prediction == "epsilon":
        return (z_t - alpha * x_0) / sigma
    return (z_t - x_0) / sigma


@dataclass(frozen=True)
class Level:
    """One noise level of a process: the weights of picture (alpha) and noise (sigma), and the network's timestep."""

    prediction: Prediction
    alpha: float
    sigma: float
    timestep: float

    def noised(self, x_0: Tensor, noise: Tensor) -> Tensor:
        """z_t = alpha x_0 + sigma n."""
        return self.alpha * x_0 + self.sigma * noise

    def x_0(self, output: Tensor, z_t: Tensor) -> Tensor:
        """The clean latent from the network's raw output for z_t."""
        return clean(self.prediction, output, z_t, self.alpha, self.sigma)

    def output(self, x_0: Tensor, z_t: Tensor) -> Tensor:
        """The inverse of `x_0`."""
        return raw(self.prediction, x_0, z_t, self.alpha, self.sigma)


def flow_level(timestep: float) -> Level:
    """Flow matching at a timestep in (0, 1000]: sigma = t / 1000 (arXiv 2403.03206)."""
    sigma = timestep / 1000
    return Level("flow", 1 - sigma, sigma, timestep)


@dataclass(frozen=True)
class Process:
    """A base's noise process at S indices, the noisiest first: alpha, sigma and the network's timesteps, (S,) each.

    `prediction` is the kind of the network's output for z_t. `flow`: n - x_0; `epsilon`: n; `v`: alpha n - sigma x_0.
    """

    prediction: Prediction
    alpha: Tensor
    sigma: Tensor
    timesteps: Tensor

    @property
    def path(self) -> Tensor:
        """The share of noise s on the straight path at each index, (S,), decreasing."""
        return self.sigma / (self.alpha + self.sigma)

    def to(self, device: torch.device) -> Process:
        tables = (table.to(device) for table in (self.alpha, self.sigma, self.timesteps))
        return Process(self.prediction, *tables)

    def network_input(self, z: Tensor, index: Tensor) -> Tensor:
        """z on the straight path (B, c, h, w), indices (B,) -> z_t in the network's scale."""
        return z * _at(self.alpha + self.sigma, index)

    def x_0(self, output: Tensor, z_t: Tensor, index: Tensor) -> Tensor:
        """The clean latent from the network's output at indices (B,); z_t is in the network's scale."""
        return clean(self.prediction, output, z_t, _at(self.alpha, index), _at(self.sigma, index))

    def level(self, timestep: float) -> Level:
        """The level at a timestep. Raises ValueError for a timestep that is not in the table."""
        distance, index = (self.timesteps.double() - timestep).abs().min(dim=0)
        if float(distance) > 0.5:
            raise ValueError(f"Timestep {timestep:g} is not in the process's table.")
        row = (float(table[index]) for table in (self.alpha, self.sigma, self.timesteps))
        return Level(self.prediction, *row)


def flow_matching(shift: float, count: int = 1000) -> Process:
    """Stable Diffusion 3's table: s = shift t / (1 + (shift - 1) t), t from 1 to 1/count (arXiv 2403.03206, 5.3.2)."""
    t = torch.arange(count, 0, -1, dtype=torch.float64) / count
    sigma = shift * t / (1 + (shift - 1) * t)
    return Process("flow", (1 - sigma).float(), sigma.float(), (sigma * count).float())


def variance_preserving(prediction: Prediction, alphas_cumprod: Tensor) -> Process:
    """alpha^2 = alphas_cumprod, sigma^2 = 1 - alpha^2; alphas_cumprod (S,) starts at the least noise."""
    share = alphas_cumprod.double().flip(0)
    timesteps = torch.arange(len(share) - 1, -1, -1)
    return Process(prediction, share.sqrt().float(), (1 - share).sqrt().float(), timesteps)


def _at(table: Tensor, index: Tensor) -> Tensor:
    return table[index][:, None, None, None]
