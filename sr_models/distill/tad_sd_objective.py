"""One training step of time-aware distillation (TAD-SR, arXiv 2408.07476) with Stable Diffusion as base.

The losses of `tad.py` on the straight path of `diffusion.py`: the base is the denoiser that compares student and
target, and its encoder the one that the discriminator looks through.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import tad, tsd
from .bases import Condition
from .draws import Draws
from .objectives import Losses, ParameterGroup, StudentWeights
from .sd_objective import StableDiffusionObjective
from .shared_base import SharedBase

# Shares of noise at which TAD-SR's score difference is taken: kappa sqrt(eta_t) / (1 + kappa sqrt(eta_t)) at its
# timesteps 0 and 2. So near the clean picture only fine structure differs.
LOWEST_NOISE, HIGHEST_NOISE = 0.04, 0.26


@dataclass(frozen=True)
class TADConfig:
    """Learning rates are AdamW's."""

    learning_rate: float = 5e-6
    discriminator_learning_rate: float = 5e-5
    weights: StudentWeights = field(default_factory=StudentWeights)


class TADObjective(StableDiffusionObjective):
    """L_reg + w_score L_hsd + w_adversarial L_G for the student, L_D for the discriminator.

    The target z_t is the batch's `z_t` (B, c, h/2, w/2), latents of a multi-step sampler's results, and where it has
    none the HR latent. One backward pass serves both players, as in `StudentObjective`.
    """

    def __init__(self, base: SharedBase, default: Condition, null: Condition, config: TADConfig):
        super().__init__(base, default, null)
        self.config = config
        channels = [width for _, width in base.family.taps(base.network)]
        self.discriminator = tad.TimeAwareDiscriminator(channels)

    def forward(self, batch: dict[str, Tensor], draws: Draws, step: int) -> Losses:
        condition, z_h = Condition(batch["prompt"], batch["pooled"]), batch["z_h"].float()
        z_t, weights = batch.get("z_t", z_h).float(), self.config.weights
        z_s = self.student(batch["lr"].float() / 255, draws.normal(*z_h.shape[1:]))
        regression = tad.regression_loss(z_s, z_t)
        score = self._score_loss(z_s, z_t, condition, draws)
        adversarial, discriminator = self._adversarial_losses(z_s, z_h, condition, draws)
        student = weights.regression * regression + weights.score * score + weights.adversarial * adversarial
        return {
            "loss": student + discriminator,
            "regression": regression,
            "score": score,
            "adversarial": adversarial,
            "discriminator": discriminator,
        }

    def _score_loss(self, z_s: Tensor, z_t: Tensor, condition: Condition, draws: Draws) -> Tensor:
        path = self.base.process.path
        indices = torch.nonzero((path >= LOWEST_NOISE) & (path <= HIGHEST_NOISE))[:, 0]
        index, noise = draws.integers(int(indices[0]), int(indices[-1]) + 1), draws.normal(*z_s.shape[1:])
        sigma = tsd.at(path, index)

        @torch.no_grad()
        def seen_noise(z: Tensor) -> Tensor:
            x_t = tsd.noised(z, noise, sigma)
            return noise_of(x_t, self.base.teacher(x_t, index, condition), sigma)

        return tad.high_frequency_score_loss(z_s, seen_noise(z_s) - seen_noise(z_t))

    def _adversarial_losses(
        self, z_s: Tensor, z_h: Tensor, condition: Condition, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        index, noise = draws.integers(tsd.FIRST_INDEX, tsd.LAST_INDEX + 1), draws.normal(*z_s.shape[1:])
        sigma, steps = tsd.at(self.base.process.path, index), len(self.base.process.path)
        fake = self.base.features(tsd.noised(z_s, noise, sigma), index, condition)
        with torch.no_grad():
            real = self.base.features(tsd.noised(z_h, noise, sigma), index, condition)
        return tad.players_losses(self.discriminator, real, fake, index, steps)

    def groups(self) -> list[ParameterGroup]:
        judges = list(self.discriminator.parameters())
        return [
            {"name": "student", "params": self.base.student_parameters(), "lr": self.config.learning_rate},
            {"name": "discriminator", "params": judges, "lr": self.config.discriminator_learning_rate},
        ]

    def settings(self) -> dict[str, Any]:
        """What a run must keep to be gone on with."""
        adapters = {"ranks": asdict(self.base.ranks), "teacher": self.base.teacher_adapters}
        return {"method": "tad", **adapters, **asdict(self.config)}


def noise_of(z_t: Tensor, x_0: Tensor, sigma: Tensor) -> Tensor:
    """The noise that takes x_0 to z_t on the straight path: (z_t - (1 - sigma) x_0) / sigma."""
    return (z_t - (1 - sigma) * x_0) / sigma
