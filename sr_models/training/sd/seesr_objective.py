"""One training step of TAD-SeeSR: time-aware distillation of SeeSR (arXiv 2408.07476) with stored results of SeeSR.

The teacher and the discriminator's features look at the HR picture, the student at the LR picture. The published
script starts the student from the HR's latent with noise, which has a trace of HR that no picture to upscale has;
here it starts from the LR's, as it does later.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...canvas.noise import canvas_noise
from ..draws import Draws
from .bases import Condition
from .objective import enlarged
from .seesr_base import SeeSRBase
from .tad_objective import TADObjective

TIMESTEP_STRIDE, TIMESTEPS = 20, 44  # the score and the discriminator use t = 20, 40, ..., 880


class SeeSRObjective(TADObjective):
    """As `TADObjective`, but half of the prompts are empty, as in the published training."""

    base: SeeSRBase

    def results(self, batch: dict[str, Tensor], draws: Draws) -> tuple[Tensor, Condition]:
        lr, hr = batch["lr"].float() / 255, batch["hr"].float() / 255
        is_empty = draws.integers(0, 2)[:, None, None] == 0
        prompt = torch.where(is_empty, self.prompt("null", len(lr)).prompt, batch["prompt"].float())
        z_s = self._step(lr, prompt, lambda z_lr: draws.normal(*z_lr.shape[1:]))
        return z_s, self.base.sight(prompt, hr, hr, "bicubic")

    def _step(self, lr: Tensor, prompt: Tensor, noise: Callable[[Tensor], Tensor]) -> Tensor:
        """z_s of LR pictures (B, 3, h, w) in [0, 1]; `noise` draws it for a latent."""
        large = enlarged(lr)
        z_lr = self.base.encode(large)
        return self.base.student(self.base.noised(z_lr, noise(z_lr)), self.base.sight(prompt, large / 2 + 0.5, lr))

    def score_index(self, draws: Draws) -> Tensor:
        return len(self.base.process.path) - 1 - TIMESTEP_STRIDE * draws.integers(1, TIMESTEPS + 1)

    adversarial_index = score_index

    @torch.no_grad()
    def restore(self, lr: Tensor, seed: int) -> Tensor:
        z_s = self._step(lr, self.prompt("default", len(lr)).prompt, lambda z_lr: canvas_noise(z_lr, seed))
        return (self.base.decode(z_s) / 2 + 0.5).clamp(0, 1)
