"""Objectives of a network from picture to picture. First faithful (least error), then `detailed_objective`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..families import conv_sr
from ..networks.conv_sr import ConvSR
from .draws import Draws
from .objective import Losses, ParameterGroup


class PictureObjective(nn.Module):
    """The parts that both phases share.

    A batch contains `lr` (B, 3, h, w), `hr` (B, 3, 4h, 4w) and, with a teacher, `teacher` (B, 3, 4h, 4w), uint8.
    """

    def __init__(self, network: ConvSR, learning_rate: float):
        super().__init__()
        self.network, self.learning_rate = network, learning_rate
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, batch: dict[str, Tensor], draws: Draws, step: int) -> Losses:
        pictures = {name: batch[name].float() / 255 for name in ("lr", "hr", "teacher") if name in batch}
        lr = pictures.pop("lr").contiguous(memory_format=torch.channels_last)
        return self.losses(self.network(lr).float(), pictures, draws)

    def losses(self, result: Tensor, targets: dict[str, Tensor], draws: Draws) -> Losses:
        """The losses of a result, by name, with their sum as `loss`. `targets` are `hr` and maybe `teacher`."""
        raise NotImplementedError

    def groups(self) -> list[ParameterGroup]:
        return [{"name": "network", "params": list(self.network.parameters()), "lr": self.learning_rate}]

    def averaged(self) -> list[nn.Parameter]:
        return list(self.network.parameters())

    @torch.no_grad()
    def restore(self, lr: Tensor, seed: int) -> Tensor:
        return self.network(lr).float().clamp(0, 1)

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        conv_sr.save(folder / "model.safetensors", self.network)
        return folder / "model.safetensors"

    def settings(self) -> dict[str, Any]:
        return {"learning_rate": self.learning_rate, "network": asdict(self.network.config)}


class FaithfulObjective(PictureObjective):
    """mean |result - y|, y = HR + imitation (teacher - HR); without a teacher, y = HR.

    The median picture minimises it (EDSR, arXiv 1707.02921, section 3.2). A teacher's result is a function of the LR
    picture, so that its median has less spread than HR's and is learned in fewer steps.
    """

    def __init__(self, network: ConvSR, learning_rate: float, imitation: float = 0.0):
        super().__init__(network, learning_rate)
        self.imitation = imitation

    def losses(self, result: Tensor, targets: dict[str, Tensor], draws: Draws) -> Losses:
        hr = targets["hr"]
        target = hr + self.imitation * (targets["teacher"] - hr) if "teacher" in targets else hr
        return {"loss": (result - target).abs().mean()}

    def settings(self) -> dict[str, Any]:
        return super().settings() | ({"imitation": self.imitation} if self.imitation else {})
