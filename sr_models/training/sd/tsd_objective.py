"""One training step of TSD-SR (arXiv 2411.18263): from a batch to the losses of student and auxiliary."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...measures.lpips import Lpips
from ..draws import Draws
from ..objective import Losses, ParameterGroup
from . import tsd
from .bases import Condition
from .encoder_distance import encoder_distance
from .objective import StableDiffusionObjective
from .shared_base import SharedBase, guided


@dataclass(frozen=True)
class Stage:
    """Weights of the student's losses, and the number of DASM steps in distillation."""

    perceptual: float
    latent: float
    distillation: float
    dasm_steps: int


EARLY = Stage(perceptual=1.0, latent=1.0, distillation=1.0, dasm_steps=1)
LATE = Stage(perceptual=2.0, latent=0.0, distillation=1.0, dasm_steps=4)


@dataclass(frozen=True)
class TSDConfig:
    """Learning rates are AdamW's; the curriculum changes from EARLY to LATE after `early_steps`; `matching` is an
    argument of `tsd.gradient`."""

    learning_rate: float = 5e-6
    auxiliary_learning_rate: float = 1e-6
    guidance: float = 7.5
    early_steps: int = 50_000
    matching: tsd.Matching = "score"

    def stage(self, step: int) -> Stage:
        return EARLY if step < self.early_steps else LATE


class TSDObjective(StableDiffusionObjective):
    """The student's L = w_p perceptual(x_s, x_h) + w_l mean (z_s - z_h)^2 + w_d L_tsd, and the auxiliary's loss.

    One backward pass is enough for both, because neither's weights have a gradient in the other's loss.
    """

    def __init__(
        self, base: SharedBase, default: Condition, null: Condition, config: TSDConfig, lpips: Lpips | None = None
    ):
        super().__init__(base, default, null)
        self.config, self.lpips = config, lpips

    def forward(self, batch: dict[str, Tensor], draws: Draws, step: int) -> Losses:
        stage, condition = self.config.stage(step), Condition(batch["prompt"], batch["pooled"])
        z_h, x_h = batch["z_h"].float(), batch["hr"].float() / 127.5 - 1
        z_s = self.student(batch["lr"].float() / 255, draws.normal(*z_h.shape[1:]))
        g = self._gradient(z_s.detach(), z_h, condition, draws, stage.dasm_steps)
        x_s = self.base.decode(z_s).clamp(-1, 1)
        perceptual, latent = self._perceptual(x_s, x_h), F.mse_loss(z_s, z_h)
        distillation = tsd.distillation_loss(z_s, g)
        student = stage.perceptual * perceptual + stage.latent * latent + stage.distillation * distillation
        auxiliary = self.auxiliary_loss(z_s.detach(), condition, draws)
        return {
            "loss": student + auxiliary,
            "perceptual": perceptual,
            "latent": latent,
            "distillation": distillation,
            "auxiliary": auxiliary,
        }

    def _gradient(self, z_s: Tensor, z_h: Tensor, condition: Condition, draws: Draws, steps: int) -> Tensor:
        start = draws.integers(tsd.FIRST_INDEX, tsd.LAST_INDEX + 1)
        bias = draws.integers(-tsd.STRIDE // 2, tsd.STRIDE // 2)
        noise = draws.normal(*z_s.shape[1:])
        path = self.base.process.path
        indices = tsd.trajectory(start, bias, steps, len(path))
        null = self.prompt("null", len(z_s))
        condition = condition.to(null.prompt)
        teacher, auxiliary = (
            guided(model, condition, null, self.config.guidance) for model in (self.base.teacher, self.base.auxiliary)
        )
        return tsd.gradient(z_s, z_h, noise, indices, path, teacher, auxiliary, matching=self.config.matching)

    def _perceptual(self, x_s: Tensor, x_h: Tensor) -> Tensor:
        return encoder_distance(self.base.vae, x_s, x_h) if self.lpips is None else self.lpips(x_s, x_h)

    # Required by the training loop

    def groups(self) -> list[ParameterGroup]:
        student, auxiliary = self.base.student_parameters(), self.base.auxiliary_parameters()
        return [
            {"name": "student", "params": student, "lr": self.config.learning_rate},
            {"name": "auxiliary", "params": auxiliary, "lr": self.config.auxiliary_learning_rate},
        ]

    def settings(self) -> dict[str, Any]:
        perceptual = "encoder" if self.lpips is None else "lpips"
        return {"method": "tsd", "perceptual": perceptual, **self.base.settings(), **asdict(self.config)}
