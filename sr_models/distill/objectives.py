"""What one training step computes: modules from a batch to named losses, `loss` being the one to minimise.

Trainable is what requires a gradient. All chance comes from the generator, so that a step can be repeated.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ..networks.pixel_shuffle import PixelShuffleCodec
from ..networks.swin_unet import SwinUNet
from ..schedule import ResShiftSchedule
from ..step import one_step, predict, sample
from . import tad

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """Latents of the HR and of the bicubically enlarged LR (y), and the LR picture in [-1, 1]."""

    z_h: Tensor
    y: Tensor
    condition: Tensor

    @classmethod
    def from_pairs(cls, hr: Tensor, lr: Tensor, codec: PixelShuffleCodec) -> Batch:
        """hr (B, 3, H, W) and lr (B, 3, H/f, W/f), uint8."""
        hr, lr = hr.float() / 255, lr.float() / 255
        enlarged = F.interpolate(lr, scale_factor=codec.factor, mode="bicubic", align_corners=False)
        return cls(codec.encode(hr), codec.encode(enlarged), lr * 2 - 1)


def _timesteps(low: int, high: int, batch: Batch, generator: Generator) -> Tensor:
    """Uniform in low .. high - 1, (B,)."""
    return torch.randint(low, high, (len(batch.y),), generator=generator).to(batch.y.device)


def _noise(batch: Batch, generator: Generator) -> Tensor:
    return torch.randn(batch.y.shape, generator=generator).to(batch.y.device)


class TeacherObjective(nn.Module):
    """ResShift's own: mean (f(x_t, t) - z_h)^2, t uniform.

    With `regression`, t is always the last: the network learns the mean of what could be,
    the smooth answer that distillation is measured against.
    """

    def __init__(self, network: SwinUNet, schedule: ResShiftSchedule, regression: bool = False):
        super().__init__()
        self.network, self.schedule = network, schedule
        self.first_timestep = schedule.steps - 1 if regression else 0

    def forward(self, batch: Batch, generator: Generator) -> Losses:
        t = _timesteps(self.first_timestep, self.schedule.steps, batch, generator)
        x_t = self.schedule.noised(batch.z_h, batch.y, t, _noise(batch, generator))
        loss = F.mse_loss(predict(self.network, self.schedule, x_t, batch.condition, t), batch.z_h)
        return {"loss": loss}

    def settings(self) -> dict:
        """What a run must keep to be gone on with."""
        return {"first_timestep": self.first_timestep}

    @torch.no_grad()
    def sample(self, network: nn.Module, batch: Batch, noise: Tensor) -> Tensor:
        sampler = one_step if self.first_timestep else sample
        return sampler(network, self.schedule, batch.y, batch.condition, noise)


@dataclass(frozen=True)
class StudentWeights:
    """Weights of the losses (TAD-SR: 1, 1, 0.02; for faces 0.1 and 0.2 in place of the last two)."""

    regression: float = 1.0
    score: float = 1.0
    adversarial: float = 0.02


class StudentObjective(nn.Module):
    """TAD-SR's: L_reg + w_score L_hsd + w_adversarial L_G for the student, L_D for the discriminator.

    One backward pass serves both: in L_G the discriminator's weights are constants, in L_D the student's
    result is. `score_timesteps`: the score difference is taken at t uniform in 0 .. that - 1.
    """

    def __init__(
        self,
        network: SwinUNet,
        teacher: SwinUNet,
        schedule: ResShiftSchedule,
        weights: StudentWeights,
        score_timesteps: int = 3,
    ):
        super().__init__()
        self.network, self.schedule, self.weights = network, schedule, weights
        self.teacher = teacher.requires_grad_(False)
        widths = [teacher.config.channels * m for m in teacher.config.multipliers]
        self.discriminator = tad.TimeAwareDiscriminator([*widths, widths[-1]])
        self.score_timesteps = score_timesteps

    def forward(self, batch: Batch, generator: Generator) -> Losses:
        noise = _noise(batch, generator)
        with torch.no_grad():
            z_t = sample(self.teacher, self.schedule, batch.y, batch.condition, noise)
        z_s = one_step(self.network, self.schedule, batch.y, batch.condition, noise)
        regression = tad.regression_loss(z_s, z_t)
        score = self._score_loss(z_s, z_t, batch, generator)
        adversarial, discriminator = self._adversarial_losses(z_s, batch, generator)
        weights = self.weights
        student = weights.regression * regression + weights.score * score + weights.adversarial * adversarial
        return {
            "loss": student + discriminator,
            "regression": regression,
            "score": score,
            "adversarial": adversarial,
            "discriminator": discriminator,
        }

    def _score_loss(self, z_s: Tensor, z_t: Tensor, batch: Batch, generator: Generator) -> Tensor:
        t = _timesteps(0, self.score_timesteps, batch, generator)
        noise = _noise(batch, generator)
        gradient = tad.score_difference(self.teacher, self.schedule, z_s, z_t, batch.y, batch.condition, t, noise)
        return tad.high_frequency_score_loss(z_s, gradient)

    def _adversarial_losses(self, z_s: Tensor, batch: Batch, generator: Generator) -> tuple[Tensor, Tensor]:
        t = _timesteps(0, self.schedule.steps - 1, batch, generator)
        noise = _noise(batch, generator)

        def features(z: Tensor) -> list[Tensor]:
            x_t = self.schedule.network_input(self.schedule.noised(z, batch.y, t, noise), t)
            return self.teacher.features(x_t, batch.condition, t)

        fake = features(z_s)
        with torch.no_grad():
            real = features(batch.z_h)
        steps = self.schedule.steps
        constants = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        judged = torch.func.functional_call(self.discriminator, constants, (fake, t, steps))
        logits_fake = self.discriminator([f.detach() for f in fake], t, steps)
        logits_real = self.discriminator(real, t, steps)
        return tad.generator_loss(judged), tad.discriminator_loss(logits_real, logits_fake)

    def settings(self) -> dict:
        """What a run must keep to be gone on with."""
        return {"weights": asdict(self.weights), "score_timesteps": self.score_timesteps}

    @torch.no_grad()
    def sample(self, network: nn.Module, batch: Batch, noise: Tensor) -> Tensor:
        return one_step(network, self.schedule, batch.y, batch.condition, noise)
