"""Training a network from picture to picture to the least error."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..families import conv_sr
from ..networks.conv_sr import SCALE, ConvSR, ConvSRConfig
from .draws import Draws
from .loop import TrainConfig, train
from .objective import Losses, ParameterGroup
from .pictures import PairConfig, PicturePairs


class FaithfulObjective(nn.Module):
    """mean |result - HR|, of which the median picture is the best answer (EDSR, arXiv 1707.02921, section 3.2).

    A batch has `lr` (B, 3, h, w) and `hr` (B, 3, 4h, 4w), uint8.
    """

    def __init__(self, network: ConvSR, learning_rate: float):
        super().__init__()
        self.network, self.learning_rate = network, learning_rate
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, batch: dict[str, Tensor], draws: Draws, step: int) -> Losses:
        hr, lr = (batch[name].float() / 255 for name in ("hr", "lr"))
        result = self.network(lr.contiguous(memory_format=torch.channels_last))
        return {"loss": (result.float() - hr).abs().mean()}

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


@dataclass(frozen=True)
class FaithfulRun:
    """What is trained, on what.

    `start`: a model of this kind whose weights the training starts from, in place of random ones.
    """

    data: Path
    network: ConvSRConfig = field(default_factory=ConvSRConfig)
    pairs: PairConfig = field(default_factory=PairConfig)
    learning_rate: float = 5e-4
    start: Path | None = None


def train_faithful(config: TrainConfig, run: FaithfulRun) -> Path:
    """Returns the model's path. Raises UserError for settings or files that do not fit."""
    crop, network = run.pairs.crop, run.network
    if crop < 2 * SCALE or crop % SCALE:
        raise UserError(f"Crop {crop} does not fit the network: choose a multiple of {SCALE} from {2 * SCALE} px.")
    if network.channels < SCALE or network.channels % SCALE or network.blocks < 1:
        raise UserError(
            f"A network of {network.channels} channels and {network.blocks} blocks cannot be built: choose a multiple "
            f"of {SCALE} channels and at least 1 block."
        )
    if not run.data.is_dir():
        raise UserError(f"{run.data} is not a folder. Choose a folder that contains training pictures.")
    torch.manual_seed(config.seed)
    learner = ConvSR(network) if run.start is None else conv_sr.read(run.start).requires_grad_(True)
    return train(config, FaithfulObjective(learner, run.learning_rate), PicturePairs(run.data, run.pairs, config.seed))
