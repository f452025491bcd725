"""ResShift's schedule: the path from a clean picture to its enlarged LR plus noise, and back.

Notation as in the paper (arXiv 2307.12348): x_0 is the clean picture, y the enlarged LR, x_t a point between them,
eta_t the position on the path, from near 0 to near 1, and kappa the strength of the noise. All pictures here are
latents of one shape, (B, c, h, w).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class ResShiftSchedule:
    """A ResShift process with timesteps 0 to `steps - 1`.

    `power` changes the geometric growth of sqrt(eta), `min_noise` is the noise at timestep 0, `end` is the last
    sqrt(eta), and `largest_start` is a bound of the first one. The defaults are the published ones for 15 steps.
    """

    steps: int = 15
    kappa: float = 2.0
    power: float = 0.3
    min_noise: float = 0.04
    end: float = 0.99
    largest_start: float = math.sqrt(0.001)

    @cached_property
    def sqrt_eta(self) -> tuple[float, ...]:
        """sqrt(eta_t) = s_0 r^u_t, u_t = (t / (T-1))^p (T-1) (section 3.2 of the paper)."""
        start = min(self.min_noise / self.kappa, self.min_noise, self.largest_start)
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
        """x_T = y + kappa sqrt(eta_T) noise, the start of the sampler."""
        return y + self.kappa * self.sqrt_eta[-1] * noise

    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t divided by its largest standard deviation, sqrt(1 + kappa^2 eta_t)."""
        return x_t / torch.sqrt(1 + (self.kappa * self._sqrt_eta(t, x_t)) ** 2)

    def noise_of(self, x_t: Tensor, x_0: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """The noise with which `noised` gives x_t from x_0 and y."""
        sqrt_eta = self._sqrt_eta(t, x_t)
        return (x_t - (1 - sqrt_eta**2) * x_0 - sqrt_eta**2 * y) / (self.kappa * sqrt_eta)

    def ddim_step(self, x_t: Tensor, x_0: Tensor, y: Tensor, t: int) -> Tensor:
        """x_{t-1} without fresh noise: k x_0 + m x_t + j y (SinSR, arXiv 2311.14760, equation 5)."""
        eta, previous = self.sqrt_eta[t] ** 2, self.sqrt_eta[t - 1] ** 2
        root = math.sqrt(previous * eta)
        m = math.sqrt(previous / eta)
        return (1 - previous + root - m) * x_0 + m * x_t + (previous - root) * y

    def posterior_step(self, x_t: Tensor, x_0: Tensor, t: int, noise: Tensor) -> Tensor:
        """A sample of q(x_{t-1} | x_t, x_0, y) (equation 6 of the paper), whose mean does not depend on y.

        N((eta_{t-1} x_t + alpha_t x_0) / eta_t, kappa^2 eta_{t-1} alpha_t / eta_t), alpha_t = eta_t - eta_{t-1}.
        """
        eta, previous = self.sqrt_eta[t] ** 2, self.sqrt_eta[t - 1] ** 2
        alpha = eta - previous
        mean = (previous * x_t + alpha * x_0) / eta
        return mean + self.kappa * math.sqrt(previous * alpha / eta) * noise
