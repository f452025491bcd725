"""What kinds of diffusion model a base can be, and how each is one function: z_t and its index -> x_0.

Every process z_t = alpha x_0 + sigma n is a straight path once z_t is divided by alpha + sigma. So one set of
equations, written for the path (1 - s) x_0 + s n with s = sigma / (alpha + sigma), serves flow matching (where
alpha + sigma = 1 already) and the variance-preserving processes of Stable Diffusion 1 and 2 and SDXL. An Euler step
on the path is a DDIM step of those (arXiv 2010.02502, equation 13).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["flow", "epsilon", "v"]


@dataclass(frozen=True)
class Process:
    """A base's noise process at S indices, the noisiest first: alpha, sigma and the network's timesteps, (S,) each.

    `prediction`: what the network gives for z_t. `flow`: n - x_0; `epsilon`: n; `v`: alpha n - sigma x_0.
    """

    prediction: Prediction
    alpha: Tensor
    sigma: Tensor
    timesteps: Tensor

    @property
    def path(self) -> Tensor:
        """The straight path's share of noise at each index, (S,), falling."""
        return self.sigma / (self.alpha + self.sigma)

    def to(self, device: torch.device) -> Process:
        tables = (table.to(device) for table in (self.alpha, self.sigma, self.timesteps))
        return Process(self.prediction, *tables)

    def network_input(self, z: Tensor, index: Tensor) -> Tensor:
        """z on the straight path (B, c, h, w), indices (B,) -> z_t in the network's own scale."""
        return z * _at(self.alpha + self.sigma, index)

    def x_0(self, output: Tensor, z_t: Tensor, index: Tensor) -> Tensor:
        """The clean latent that the network's output stands for; z_t in the network's own scale."""
        alpha, sigma = _at(self.alpha, index), _at(self.sigma, index)
        if self.prediction == "v":
            return alpha * z_t - sigma * output
        if self.prediction == "epsilon":
            return (z_t - sigma * output) / alpha
        return z_t - sigma * output


def flow_matching(shift: float, count: int = 1000) -> Process:
    """Stable Diffusion 3's table: s = shift t / (1 + (shift - 1) t), t from 1 to 1/count (arXiv 2403.03206, 5.3.2)."""
    t = torch.arange(count, 0, -1, dtype=torch.float64) / count
    sigma = shift * t / (1 + (shift - 1) * t)
    return Process("flow", (1 - sigma).float(), sigma.float(), (sigma * count).float())


def variance_preserving(prediction: Prediction, alphas_cumprod: Tensor) -> Process:
    """alpha^2 = alphas_cumprod, sigma^2 = 1 - alpha^2; alphas_cumprod (S,) by falling cleanness, as schedulers have."""
    share = alphas_cumprod.double().flip(0)
    timesteps = torch.arange(len(share) - 1, -1, -1)
    return Process(prediction, share.sqrt().float(), (1 - share).sqrt().float(), timesteps)


def _at(table: Tensor, index: Tensor) -> Tensor:
    return table[index][:, None, None, None]
