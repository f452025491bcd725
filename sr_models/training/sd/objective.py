"""The common part of objectives on Stable Diffusion: a one-step student on a base, its prompts and its validation."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ...canvas.resize import resize
from ..draws import Draws
from . import tsd
from .bases import Condition
from .shared_base import SharedBase

SCALE = 4


class StableDiffusionObjective(nn.Module):
    """Base class. A batch contains `lr` (B, 3, h, w) and `hr` (B, 3, 4h, 4w), uint8, HR latents `z_h`
    (B, c, h/2, w/2), and each picture's prompt (`prompt`, `pooled`) for the teacher; the student always gets the
    `default` prompt."""

    def __init__(self, base: SharedBase, default: Condition, null: Condition):
        super().__init__()
        self.base = base
        for name, condition in (("default", default), ("null", null)):
            self.register_buffer(f"{name}_prompt", condition.prompt.float(), persistent=False)
            self.register_buffer(f"{name}_pooled", condition.pooled.float(), persistent=False)

    def prompt(self, name: str, count: int) -> Condition:
        """The `default` or the `null` prompt, repeated for a batch."""
        return Condition(getattr(self, f"{name}_prompt"), getattr(self, f"{name}_pooled")).expand(count)

    def student(self, lr: Tensor, noise: Tensor | None) -> Tensor:
        """LR (B, 3, h, w) in [0, 1] -> z_s; `noise` samples the encoder's posterior, None takes its mode."""
        z_lr = self.base.encode(enlarged(lr), noise)
        return self.base.student(z_lr, self.prompt("default", len(lr)))

    def auxiliary_loss(
        self, z_s: Tensor, condition: Condition, draws: Draws, last_index: int = tsd.LAST_INDEX
    ) -> Tensor:
        """The auxiliary's loss on the student's results, noised to all levels at which it is used."""
        index = draws.integers(tsd.FIRST_INDEX, last_index + 1)
        noise, weight = draws.normal(*z_s.shape[1:]), tsd.logit_normal(draws.normal())
        z_t = tsd.noised(z_s, noise, tsd.at(self.base.process.path, index))
        return tsd.auxiliary_loss(self.base.auxiliary(z_t, index, condition), z_s, weight)

    def averaged(self) -> list[nn.Parameter]:
        return self.base.student_parameters()

    @torch.no_grad()
    def restore(self, lr: Tensor, seed: int) -> Tensor:
        return (self.base.decode(self.student(lr, None)) / 2 + 0.5).clamp(0, 1)

    def save(self, folder: Path) -> Path:
        self.base.save(folder)
        return folder


def enlarged(lr: Tensor) -> Tensor:
    """(B, 3, h, w) in [0, 1] -> bicubically x4 in [-1, 1], as the denoiser gets it at inference."""
    return resize(lr, (lr.shape[-2] * SCALE, lr.shape[-1] * SCALE)).clamp(0, 1) * 2 - 1
