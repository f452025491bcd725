"""ResShift's schedule: how a picture drifts from clean to its enlarged LR plus noise, and back.

Notation as in the paper (arXiv 2307.12348): x_0 clean, y the enlarged LR, x_t between them,
eta_t from near 0 to near 1 the share of the drift done, kappa the strength of the noise.
All pictures here are latents of one shape, (B, c, h, w).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class ResShiftSchedule:
    """The numbers of a ResShift process with timesteps 0 .. `steps - 1`.

    `power` bends the geometric growth of sqrt(eta), `min_noise` is the noise left at timestep 0,
    `end` is the last sqrt(eta). The defaults are the published 15-step ones.
    """

    steps: int = 15
    kappa: float = 2.0
    power: float = 0.3
    min_noise: float = 0.04
    end: float = 0.99

    @cached_property
    def sqrt_eta(self) -> tuple[float, ...]:
        """sqrt(eta_t) = s_0 r^u_t, u_t = (t / (T-1))^p (T-1) (section 3.2 of the paper)."""
        start = min(self.min_noise / self.kappa, self.min_noise, math.sqrt(0.001))
        last = self.steps - 1
        growth = (self.end / start) ** (1 / last)
        return tuple(start * growth ** ((t / last) ** self.power * last) for t in range(self.steps))

    def _sqrt_eta(self, t: Tensor, like: Tensor) -> Tensor:
        table = torch.tensor(self.sqrt_eta, dtype=like.dtype, device=like.device)
        return table[t.to(like.device)][:, None, None, None]

    def noised(self, x_0: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """A sample of q(x_t | x_0, y) = N(x_0 + eta_t (y - x_0), kappa^2 eta_t); t: (B,) integers."""
        sqrt_eta = self._sqrt_eta(t, x_0)
        return x_0 + sqrt_eta**2 * (y - x_0) + self.kappa * sqrt_eta * noise

    def start(self, y: Tensor, noise: Tensor) -> Tensor:
        """x_T = y + kappa sqrt(eta_T) noise: what the sampler starts from."""
        return y + self.kappa * self.sqrt_eta[-1] * noise

    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t over the root of its largest variance, sqrt(1 + kappa^2 eta_t)."""
        return x_t / torch.sqrt(1 + (self.kappa * self._sqrt_eta(t, x_t)) ** 2)

    def noise_of(self, x_t: Tensor, x_0: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """The noise that takes (x_0, y) to x_t: `noised` solved for it."""
        sqrt_eta = self._sqrt_eta(t, x_t)
        return (x_t - (1 - sqrt_eta**2) * x_0 - sqrt_eta**2 * y) / (self.kappa * sqrt_eta)

    def ddim_step(self, x_t: Tensor, x_0: Tensor, y: Tensor, t: int) -> Tensor:
        """x_{t-1} without fresh noise: k x_0 + m x_t + j y (SinSR, arXiv 2311.14760, equation 5)."""
        eta, previous = self.sqrt_eta[t] ** 2, self.sqrt_eta[t - 1] ** 2
        root = math.sqrt(previous * eta)
        m = math.sqrt(previous / eta)
        return (1 - previous + root - m) * x_0 + m * x_t + (previous - root) * y
