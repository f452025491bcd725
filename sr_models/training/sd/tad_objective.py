"""One training step of time-aware distillation (TAD-SR, arXiv 2408.07476) with Stable Diffusion as base.

The losses of `tad.py` on the straight path of `process.py`. The base is both the denoiser that compares student and
target, and the feature extractor of the discriminator. Without targets from a multi-step sampler, the base can be
compared with an auxiliary model of the student's results instead, as in `tsd.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import tad
from ..draws import Draws
from ..objective import Losses, ParameterGroup
from ..pixel_objectives import StudentWeights
from . import tsd
from .bases import Condition
from .objective import StableDiffusionObjective
from .shared_base import SharedBase

# Noise levels of TAD-SR's score difference: kappa sqrt(eta_t) / (1 + kappa sqrt(eta_t)) at its timesteps 0 and 2. So
# close to the clean picture, only fine structure differs.
LOWEST_NOISE, HIGHEST_NOISE = 0.04, 0.26

Model = Callable[[Tensor, Tensor, Condition], Tensor]


@dataclass(frozen=True)
class TADConfig:
    """Learning rates are AdamW's."""

    learning_rate: float = 5e-6
    discriminator_learning_rate: float = 5e-5
    auxiliary_learning_rate: float = 1e-6
    weights: StudentWeights = field(default_factory=StudentWeights)


class TADObjective(StableDiffusionObjective):
    """L_reg + w_score L_hsd + w_adversarial L_G for the student, L_D for the discriminator.

    The target z_teacher is the batch's `z_t` (B, c, h/2, w/2), latents of a multi-step teacher's results, or the HR
    latent if the batch has none. If the base has an auxiliary, L_hsd uses the gradient of score distillation (VSD),
    which needs no target. One backward pass is enough for all parts, as in `StudentObjective`.
    """

    def __init__(self, base: SharedBase, default: Condition, null: Condition, config: TADConfig):
        super().__init__(base, default, null)
        self.config = config
        self.discriminator = tad.TimeAwareDiscriminator(base.feature_widths)
        self.near = near_clean(base.process.path)

    def forward(self, batch: dict[str, Tensor], draws: Draws, step: int) -> Losses:
        z_h = batch["z_h"].float()
        z_teacher, weights = batch.get("z_t", z_h).float(), self.config.weights
        z_s, condition = self.results(batch, draws)
        regression = tad.regression_loss(z_s, z_teacher)
        score = self._score_loss(z_s, z_teacher, condition, draws)
        adversarial, discriminator = self._adversarial_losses(z_s, z_h, condition, draws)
        student = weights.regression * regression + weights.score * score + weights.adversarial * adversarial
        losses = {"regression": regression, "score": score, "adversarial": adversarial, "discriminator": discriminator}
        if self.base.ranks.auxiliary:
            losses["auxiliary"] = self.auxiliary_loss(z_s.detach(), condition, draws, self.near[-1])
        return {"loss": student + discriminator + losses.get("auxiliary", 0), **losses}

    def results(self, batch: dict[str, Tensor], draws: Draws) -> tuple[Tensor, Condition]:
        """The student's z_s, and the teacher's condition."""
        z_s = self.student(batch["lr"].float() / 255, draws.normal(*batch["z_h"].shape[1:]))
        return z_s, Condition(batch["prompt"], batch["pooled"])

    def score_index(self, draws: Draws) -> Tensor:
        """Indices (B,) at which student and target are compared."""
        return draws.integers(self.near[0], self.near[-1] + 1)

    def adversarial_index(self, draws: Draws) -> Tensor:
        """Indices (B,) of the discriminator's features."""
        return draws.integers(tsd.FIRST_INDEX, tsd.LAST_INDEX + 1)

    def _score_loss(self, z_s: Tensor, z_teacher: Tensor, condition: Condition, draws: Draws) -> Tensor:
        index, noise = self.score_index(draws), draws.normal(*z_s.shape[1:])
        sigma = tsd.at(self.base.process.path, index)

        @torch.no_grad()
        def predicted_noise(model: Model, z: Tensor) -> Tensor:
            x_t = tsd.noised(z, noise, sigma)
            return noise_of(x_t, model(x_t, index, condition), sigma)

        teacher, auxiliary = self.base.teacher, self.base.auxiliary
        has_auxiliary = bool(self.base.ranks.auxiliary)
        expected = predicted_noise(auxiliary, z_s) if has_auxiliary else predicted_noise(teacher, z_teacher)
        return tad.high_frequency_score_loss(z_s, predicted_noise(teacher, z_s) - expected)

    def _adversarial_losses(
        self, z_s: Tensor, z_h: Tensor, condition: Condition, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        index, noise = self.adversarial_index(draws), draws.normal(*z_s.shape[1:])
        sigma, steps = tsd.at(self.base.process.path, index), len(self.base.process.path)
        fake = self.base.features(tsd.noised(z_s, noise, sigma), index, condition)
        with torch.no_grad():
            real = self.base.features(tsd.noised(z_h, noise, sigma), index, condition)
        return tad.adversarial_losses(self.discriminator, real, fake, index, steps)

    def groups(self) -> list[ParameterGroup]:
        discriminator = list(self.discriminator.parameters())
        groups: list[ParameterGroup] = [
            {"name": "student", "params": self.base.student_parameters(), "lr": self.config.learning_rate},
            {"name": "discriminator", "params": discriminator, "lr": self.config.discriminator_learning_rate},
        ]
        if auxiliary := self.base.auxiliary_parameters():
            groups.append({"name": "auxiliary", "params": auxiliary, "lr": self.config.auxiliary_learning_rate})
        return groups

    def settings(self) -> dict[str, Any]:
        """Settings that must match to resume a run."""
        return {"method": "tad", **self.base.settings(), **asdict(self.config)}


def near_clean(path: Tensor) -> list[int]:
    """The indices of a path's noise levels (S,) that the score difference uses."""
    return torch.nonzero((path >= LOWEST_NOISE) & (path <= HIGHEST_NOISE))[:, 0].tolist()


def noise_of(z_t: Tensor, x_0: Tensor, sigma: Tensor) -> Tensor:
    """The noise that takes x_0 to z_t on the straight path: (z_t - (1 - sigma) x_0) / sigma."""
    return (z_t - (1 - sigma) * x_0) / sigma
