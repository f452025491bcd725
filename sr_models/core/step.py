"""Steps from the LR's latent to the result's: one pass of the network, or several for a teacher.

A step processes tiles: latent (B, c, h, w), noise (B, n c, h, w) for a step that needs n noises, and lr (B, 3, h', w'),
the LR picture in [-1, 1]. The noise is cut from one noise canvas, so that overlapping tiles have the same noise where
they overlap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .process import Level, Process, raw
from .schedule import ResShiftSchedule

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
NoisePredictor = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Step(Protocol):
    @property
    def evaluations(self) -> int:
        """How many times the network runs per tile."""
        ...

    @property
    def noises(self) -> int:
        """How many noises the step uses. If none, the caller draws no noise and passes the latent in its place."""
        ...

    def __call__(self, network: Network, latent: Tensor, noise: Tensor, lr: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class OneStep:
    """One pass of a Stable Diffusion: from z_t at a timestep to x_0.

    Attributes:
        timestep: the network's timestep.
        noised: start from the LR's latent with added noise, instead of the LR's latent itself.
        noise_timestep: the timestep that gives the level of the added noise; None means `timestep`.
        from_noise: start from noise alone, with `noised`.
        level, start: the base's noise levels at the two timesteps, if there are two; None until the base is known
            (`on`).
    """

    timestep: float
    noised: bool = False
    noise_timestep: float | None = None
    level: Level | None = None
    start: Level | None = None
    evaluations: int = 1
    from_noise: bool = False

    @property
    def noises(self) -> int:
        return int(self.noised)

    def on(self, process: Process) -> OneStep:
        """The step with a process's levels. Raises ValueError for a timestep that the process does not have."""
        start = None if self.noise_timestep is None else process.level(self.noise_timestep)
        return replace(self, level=process.level(self.timestep), start=start)

    def __call__(self, network: Network, latent: Tensor, noise: Tensor, lr: Tensor) -> Tensor:
        if self.level is None:
            raise ValueError("This step has no noise level: call `on` with the base's process first.")
        z_t = (self.start or self.level).noised(latent, noise) if self.noised else latent
        z_t = noise if self.from_noise else z_t
        timestep = torch.full((len(latent),), self.level.timestep, device=latent.device)
        return self.level.x_0(network(z_t, lr, timestep), z_t)


@dataclass(frozen=True)
class PredictedNoise:
    """A Stable Diffusion that starts from the LR's latent with noise from a second network (InvSR, arXiv 2412.09013).

    That network gives the noise's mean and deviation, so z_t = alpha z + sigma (mean + deviation n). Further timesteps
    go on from there with the noise that the prediction leaves, as DDIM does (arXiv 2010.02502, equation 12 without
    fresh noise).

    Attributes:
        timesteps: of the passes of the network, the first one being where it starts.
        predictor: lr and timesteps (B,) -> mean and deviation (B, c, h, w); None until the model is opened.
        levels: the base's noise levels at the timesteps; empty until the base is known (`on`).
    """

    timesteps: tuple[float, ...]
    predictor: NoisePredictor | None = None
    levels: tuple[Level, ...] = ()
    noises: int = 1

    @property
    def timestep(self) -> float:
        return self.timesteps[0]

    @property
    def evaluations(self) -> int:
        return len(self.timesteps)

    def on(self, process: Process) -> PredictedNoise:
        """The step with a process's levels. Raises ValueError for a timestep that the process does not have."""
        return replace(self, levels=tuple(process.level(timestep) for timestep in self.timesteps))

    def __call__(self, network: Network, latent: Tensor, noise: Tensor, lr: Tensor) -> Tensor:
        if self.predictor is None or not self.levels:
            raise ValueError("This step has no noise levels or no predictor: call `on_base` first.")
        at = [torch.full((len(latent),), level.timestep, device=latent.device) for level in self.levels]
        mean, deviation = self.predictor(lr, at[0])
        x_0, n = latent, mean + deviation * noise
        for level, timestep in zip(self.levels, at, strict=True):
            z_t = level.noised(x_0, n)
            x_0 = level.x_0(network(z_t, lr, timestep), z_t)
            n = raw("epsilon", x_0, z_t, level.alpha, level.sigma)
        return x_0


@dataclass(frozen=True)
class Residual:
    """A part of a step whose networks predict how the latent differs from the result's: kept z - weight e.

    The results of several such passes, each with a network of its own, add up to z_0 = z - sum(weight e) if their
    `kept` add up to 1. The prediction counts as it is, whatever process the base was trained with (PiSA-SR,
    arXiv 2412.03017, equation 8).

    Attributes:
        timestep: the network's timestep.
    """

    timestep: float
    weight: float = 1.0
    kept: float = 1.0
    evaluations: int = 1
    noises: int = 0

    def on(self, process: Process) -> Residual:
        """The step itself. Raises ValueError for a timestep that the process does not have."""
        process.level(self.timestep)
        return self

    def __call__(self, network: Network, latent: Tensor, noise: Tensor, lr: Tensor) -> Tensor:
        timestep = torch.full((len(latent),), self.timestep, device=latent.device)
        return self.kept * latent - self.weight * network(latent, lr, timestep)


@dataclass(frozen=True)
class Direct:
    """x_0 as the network gives it, for networks from picture to picture: no noise, and no timestep that matters."""

    evaluations: int = 1
    noises: int = 0

    def __call__(self, network: Network, latent: Tensor, noise: Tensor, lr: Tensor) -> Tensor:
        return network(latent, lr, torch.zeros(len(latent), device=latent.device))


@dataclass(frozen=True)
class ResShiftStep:
    """ResShift's sampler: x_0 predicted once at t = T - 1 (TAD-SR, SinSR), or all T steps (ResShift).

    `stochastic`: draw each x_{t-1} from its distribution, as ResShift does; else compute it without fresh noise.
    """

    schedule: ResShiftSchedule
    evaluations: int = 1
    stochastic: bool = False

    def __post_init__(self) -> None:
        if self.evaluations not in (1, self.schedule.steps):
            raise ValueError(
                f"{self.evaluations} evaluations are not possible: use 1 or all {self.schedule.steps} of the schedule"
            )

    @property
    def noises(self) -> int:
        return self.evaluations if self.stochastic else 1

    def __call__(self, network: Network, latent: Tensor, noise: Tensor, lr: Tensor) -> Tensor:
        schedule, last = self.schedule, self.schedule.steps - 1
        first, *fresh = noise.split(latent.shape[1], dim=1)
        x_t = x_0 = schedule.start(latent, first)
        for step in range(last, last - self.evaluations, -1):
            if step < last and self.stochastic:
                x_t = schedule.posterior_step(x_t, x_0, step + 1, fresh[last - 1 - step])
            elif step < last:
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
    """The deterministic sampler from x_T = start(y, noise) through all timesteps, with T passes of the network."""
    return ResShiftStep(schedule, schedule.steps)(network, y, noise, lr)
