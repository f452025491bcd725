"""How a method gets from the LR's latent to the result's: one network evaluation, or a teacher's several.

A step works on one tile: latent and noise (B, c, h, w), lr (B, 3, h', w') the LR picture in
[-1, 1]. The noise is a cut-out of the canvas's, so neighbouring tiles agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .process import Level, Process
from .schedule import ResShiftSchedule

Network = Callable[[Tensor, Tensor, Tensor], Tensor]


class Step(Protocol):
    @property
    def evaluations(self) -> int:
        """How often the network runs for one tile."""
        ...

    @property
    def needs_noise(self) -> bool:
        """Whether `noise` has any influence; where it has none, the caller draws none and passes the latent."""
        ...

    def __call__(self, network: Network, latent: Tensor, noise: Tensor, lr: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class OneStep:
    """One evaluation of a Stable Diffusion: from z_t at a timestep to x_0.

    Attributes:
        timestep: where on the base's process the network is asked.
        noised: start from the LR's latent noised to that level; else from the LR's latent itself.
        level: the base's numbers at that timestep; None until a base is opened (`on`).
    """

    timestep: float
    noised: bool = False
    level: Level | None = None
    evaluations: int = 1

    @property
    def needs_noise(self) -> bool:
        return self.noised

    def on(self, process: Process) -> OneStep:
        """The step on a base. Raises ValueError for a timestep that its process does not have."""
        return replace(self, level=process.level(self.timestep))

    def __call__(self, network: Network, latent: Tensor, noise: Tensor, lr: Tensor) -> Tensor:
        if self.level is None:
            raise ValueError("This step belongs to no base yet: call `on` with the base's process.")
        z_t = self.level.noised(latent, noise) if self.noised else latent
        timestep = torch.full((len(latent),), self.level.timestep, device=latent.device)
        return self.level.x_0(network(z_t, lr, timestep), z_t)


@dataclass(frozen=True)
class Direct:
    """x_0 as the network gives it, for networks from picture to picture: no noise, and no timestep that matters."""

    evaluations: int = 1
    needs_noise: bool = False

    def __call__(self, network: Network, latent: Tensor, noise: Tensor, lr: Tensor) -> Tensor:
        return network(latent, lr, torch.zeros(len(latent), device=latent.device))


@dataclass(frozen=True)
class ResShiftStep:
    """ResShift's sampler: x_0 predicted once at t = T - 1 (TAD-SR, SinSR), or all T steps (ResShift)."""

    schedule: ResShiftSchedule
    evaluations: int = 1

    def __post_init__(self) -> None:
        if self.evaluations not in (1, self.schedule.steps):
            raise ValueError(f"{self.evaluations} evaluations: a schedule of {self.schedule.steps} takes 1 or all")

    @property
    def needs_noise(self) -> bool:
        return True

    def __call__(self, network: Network, latent: Tensor, noise: Tensor, lr: Tensor) -> Tensor:
        schedule, last = self.schedule, self.schedule.steps - 1
        x_t = x_0 = schedule.start(latent, noise)
        for step in range(last, last - self.evaluations, -1):
            if step < last:
                x_t = schedule.ddim_step(x_t, x_0, latent, step + 1)
            t = torch.full((len(latent),), step, device=latent.device)
            x_0 = network(schedule.network_input(x_t, t), lr, t)
        return x_0


def predict(network: Network, schedule: ResShiftSchedule, x_t: Tensor, lr: Tensor, t: Tensor) -> Tensor:
    """The network's x_0 for x_t at timesteps t (B,)."""
    return network(schedule.network_input(x_t, t), lr, t)


def one_step(network: Network, schedule: ResShiftSchedule, y: Tensor, lr: Tensor, noise: Tensor) -> Tensor:
    """x_0 predicted once, from x_T = start(y, noise) at t = T - 1; y is the latent of the enlarged LR."""
    return ResShiftStep(schedule)(network, y, noise, lr)


def sample(network: Network, schedule: ResShiftSchedule, y: Tensor, lr: Tensor, noise: Tensor) -> Tensor:
    """The deterministic sampler from x_T = start(y, noise) down all timesteps: T evaluations."""
    return ResShiftStep(schedule, schedule.steps)(network, y, noise, lr)
