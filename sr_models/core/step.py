"""How a method gets from the LR's latent to the result's: one network evaluation, or a teacher's several.

A step works on one tile: latent and noise (B, c, h, w), condition (B, 3, h', w') the LR picture in
[-1, 1]. The noise is a cut-out of the canvas's, so neighbouring tiles agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .schedule import ResShiftSchedule

Network = Callable[[Tensor, Tensor, Tensor], Tensor]


class Step(Protocol):
    @property
    def evaluations(self) -> int:
        """How often the network runs for one tile."""
        ...

    def __call__(self, network: Network, latent: Tensor, noise: Tensor, condition: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class FlowStep:
    """Flow matching at sigma 1: z - v(z, t). It starts from the LR's latent itself and adds no noise (TSD-SR)."""

    timestep: float = 1000.0
    evaluations: int = 1

    def __call__(self, network: Network, latent: Tensor, noise: Tensor, condition: Tensor) -> Tensor:
        timestep = torch.full((len(latent),), self.timestep, device=latent.device)
        return latent - network(latent, condition, timestep)


@dataclass(frozen=True)
class CleanStep:
    """x_0 itself, from a network that takes the LR's latent for its noisiest input (one-step LoRAs on U-Nets)."""

    timestep: float = 999.0
    evaluations: int = 1

    def __call__(self, network: Network, latent: Tensor, noise: Tensor, condition: Tensor) -> Tensor:
        return network(latent, condition, torch.full((len(latent),), self.timestep, device=latent.device))


@dataclass(frozen=True)
class ResShiftStep:
    """ResShift's sampler: x_0 predicted once at t = T - 1 (TAD-SR, SinSR), or all T steps (ResShift)."""

    schedule: ResShiftSchedule
    evaluations: int = 1

    def __post_init__(self) -> None:
        if self.evaluations not in (1, self.schedule.steps):
            raise ValueError(f"{self.evaluations} evaluations: a schedule of {self.schedule.steps} takes 1 or all")

    def __call__(self, network: Network, latent: Tensor, noise: Tensor, condition: Tensor) -> Tensor:
        sampler = one_step if self.evaluations == 1 else sample
        return sampler(network, self.schedule, latent, condition, noise)


def predict(network: Network, schedule: ResShiftSchedule, x_t: Tensor, condition: Tensor, t: Tensor) -> Tensor:
    """The network's x_0 for x_t at timesteps t (B,)."""
    return network(schedule.network_input(x_t, t), condition, t)


def one_step(network: Network, schedule: ResShiftSchedule, y: Tensor, condition: Tensor, noise: Tensor) -> Tensor:
    """x_0 predicted once, from x_T = start(y, noise) at t = T - 1; y is the latent of the enlarged LR."""
    t = torch.full((len(y),), schedule.steps - 1, device=y.device)
    return predict(network, schedule, schedule.start(y, noise), condition, t)


def sample(network: Network, schedule: ResShiftSchedule, y: Tensor, condition: Tensor, noise: Tensor) -> Tensor:
    """The deterministic sampler from x_T = start(y, noise) down all timesteps: T evaluations."""
    x_t = schedule.start(y, noise)
    for step in reversed(range(schedule.steps)):
        t = torch.full((len(y),), step, device=y.device)
        x_0 = predict(network, schedule, x_t, condition, t)
        x_t = schedule.ddim_step(x_t, x_0, y, step) if step else x_0
    return x_t
