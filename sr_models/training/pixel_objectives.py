"""Objectives of the bundled kind: modules that map a batch to named losses, of which `loss` is minimised.

Trainable weights are those that require a gradient. All randomness comes from the draws, so steps are reproducible.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codecs.pixel_shuffle import PixelShuffleCodec
from ..core.step import one_step, predict, sample
from ..families import bundled
from ..networks.swin_unet import SwinUNet
from . import tad
from .checkpoint import fingerprint
from .draws import Draws
from .objective import Losses, ParameterGroup


@dataclass(frozen=True)
class Batch:
    """Latents of the HR and of the bicubically enlarged LR (y), and the LR picture in [-1, 1]."""

    z_h: Tensor
    y: Tensor
    condition: Tensor

    @classmethod
    def from_pairs(cls, hr: Tensor, lr: Tensor, codec: PixelShuffleCodec) -> Batch:
        """hr (B, 3, H, W) and lr (B, 3, H/f, W/f), uint8."""
        y, condition = _start(lr.float() / 255, codec)
        return cls(codec.encode(hr.float() / 255), y, condition)


def _start(lr: Tensor, codec: PixelShuffleCodec) -> tuple[Tensor, Tensor]:
    """LR (B, 3, h, w) in [0, 1] -> the latent of the enlarged LR, and the condition."""
    enlarged = F.interpolate(lr, scale_factor=codec.factor, mode="bicubic", align_corners=False)
    return codec.encode(enlarged), lr * 2 - 1


class PixelObjective(nn.Module):
    """The common part of teacher and student objectives: a network in pixel-shuffle space."""

    def __init__(self, network: SwinUNet, description: bundled.Description, learning_rate: float):
        super().__init__()
        self.network, self.description, self.schedule = network, description, description.schedule
        self.codec, self.learning_rate = PixelShuffleCodec(network.config.bicubic_skip), learning_rate
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, batch: dict[str, Tensor], draws: Draws, step: int) -> Losses:
        return self.losses(Batch.from_pairs(batch["hr"], batch["lr"], self.codec), draws)

    def losses(self, batch: Batch, draws: Draws) -> Losses:
        raise NotImplementedError

    def groups(self) -> list[ParameterGroup]:
        learning = [weight for weight in self.parameters() if weight.requires_grad]
        return [{"name": "network", "params": learning, "lr": self.learning_rate}]

    def averaged(self) -> list[nn.Parameter]:
        return list(self.network.parameters())

    @torch.no_grad()
    def restore(self, lr: Tensor, seed: int) -> Tensor:
        y, condition = _start(lr, self.codec)
        noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y)
        sampler = one_step if self.description.evaluations == 1 else sample
        return self.codec.decode(sampler(self.network, self.schedule, y, condition, noise).float()).clamp(0, 1)

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        bundled.save(folder / "model.safetensors", self.network, self.description)
        return folder / "model.safetensors"

    def settings(self) -> dict[str, Any]:
        return {"learning_rate": self.learning_rate, "description": asdict(self.description)}


class TeacherObjective(PixelObjective):
    """ResShift's loss: mean (f(x_t, t) - z_h)^2, t uniform.

    With one evaluation in the description, t is always the last timestep: the network learns the mean of all
    possible results, a smooth baseline for distillation.
    """

    def losses(self, batch: Batch, draws: Draws) -> Losses:
        steps = self.schedule.steps
        t = draws.integers(steps - 1 if self.description.evaluations == 1 else 0, steps)
        x_t = self.schedule.noised(batch.z_h, batch.y, t, draws.normal(*batch.y.shape[1:]))
        return {"loss": F.mse_loss(predict(self.network, self.schedule, x_t, batch.condition, t), batch.z_h)}


@dataclass(frozen=True)
class StudentWeights:
    """Weights of the losses (TAD-SR: 1, 1, 0.02; for faces 1, 0.1, 0.2)."""

    regression: float = 1.0
    score: float = 1.0
    adversarial: float = 0.02


class StudentObjective(PixelObjective):
    """TAD-SR's losses: L_reg + w_score L_hsd + w_adversarial L_G for the student, L_D for the discriminator.

    One backward pass is enough for both: the discriminator's weights are constant in L_G, the student's result in
    L_D. The score difference uses t uniform in 0 .. `score_timesteps` - 1.
    """

    def __init__(
        self,
        network: SwinUNet,
        teacher: SwinUNet,
        description: bundled.Description,
        weights: StudentWeights,
        learning_rate: float,
        score_timesteps: int = 3,
    ):
        super().__init__(network, description, learning_rate)
        self.weights, self.teacher = weights, teacher.requires_grad_(False)
        self.teacher_fingerprint = fingerprint(teacher.parameters())
        widths = [teacher.config.channels * m for m in teacher.config.multipliers]
        self.discriminator = tad.TimeAwareDiscriminator([*widths, widths[-1]])
        self.score_timesteps = score_timesteps
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def losses(self, batch: Batch, draws: Draws) -> Losses:
        noise = draws.normal(*batch.y.shape[1:])
        with torch.no_grad():
            z_teacher = sample(self.teacher, self.schedule, batch.y, batch.condition, noise)
        z_s = one_step(self.network, self.schedule, batch.y, batch.condition, noise)
        regression = tad.regression_loss(z_s, z_teacher)
        score = self._score_loss(z_s, z_teacher, batch, draws)
        adversarial, discriminator = self._adversarial_losses(z_s, batch, draws)
        weights = self.weights
        student = weights.regression * regression + weights.score * score + weights.adversarial * adversarial
        return {
            "loss": student + discriminator,
            "regression": regression,
            "score": score,
            "adversarial": adversarial,
            "discriminator": discriminator,
        }

    def _score_loss(self, z_s: Tensor, z_teacher: Tensor, batch: Batch, draws: Draws) -> Tensor:
        t, noise = draws.integers(0, self.score_timesteps), draws.normal(*batch.y.shape[1:])
        gradient = tad.score_difference(self.teacher, self.schedule, z_s, z_teacher, batch.y, batch.condition, t, noise)
        return tad.high_frequency_score_loss(z_s, gradient)

    def _adversarial_losses(self, z_s: Tensor, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        t, noise = draws.integers(0, self.schedule.steps - 1), draws.normal(*batch.y.shape[1:])

        def features(z: Tensor) -> list[Tensor]:
            x_t = self.schedule.network_input(self.schedule.noised(z, batch.y, t, noise), t)
            return self.teacher.features(x_t, batch.condition, t)

        fake = features(z_s)
        with torch.no_grad():
            real = features(batch.z_h)
        return tad.adversarial_losses(self.discriminator, real, fake, t, self.schedule.steps)

    def settings(self) -> dict[str, Any]:
        weights = {"weights": asdict(self.weights), "score_timesteps": self.score_timesteps}
        return super().settings() | weights | {"teacher": self.teacher_fingerprint}
