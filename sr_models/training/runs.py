"""Training runs for models of the bundled kind: their network, schedule and initial weights."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..canvas.degradation import Degradation
from ..checkpoints.weights_file import fill, read_weights
from ..core.schedule import ResShiftSchedule
from ..errors import UserError
from ..families import bundled
from ..networks.swin_unet import SwinUNet, SwinUNetConfig
from .data import CropPairs
from .loop import TrainConfig, train
from .pixel_objectives import StudentObjective, StudentWeights, TeacherObjective

NETWORK = SwinUNetConfig(
    latent_channels=48,
    channels=64,
    multipliers=(1, 2, 2),
    blocks_per_level=1,
    swin_channels=64,
    mlp_ratio=2,
    native_size=32,
    bicubic_skip=4,
)
# A pixel-shuffled picture differs from its enlarged LR by about 0.1, which a kappa of 0.5 already covers with noise.
SCHEDULE = ResShiftSchedule(steps=4, kappa=0.5, power=0.3, min_noise=0.2)


@dataclass(frozen=True)
class Crops:
    """The training data: random crops of `crop` px from a folder of pictures."""

    folder: Path
    crop: int = 128
    degradation: Degradation = field(default_factory=Degradation)

    def pairs(self, seed: int) -> CropPairs:
        """Raises UserError if the folder does not exist or the crop does not fit the network."""
        unit = NETWORK.multiple * NETWORK.bicubic_skip
        if self.crop % unit or self.crop < unit:
            raise UserError(f"Crop {self.crop} does not fit the network: choose a multiple of {unit}.")
        if not self.folder.is_dir():
            raise UserError(f"{self.folder} is not a folder. Choose a folder that contains training pictures.")
        return CropPairs(self.folder, self.crop, self.degradation, seed)


def train_teacher(config: TrainConfig, crops: Crops, learning_rate: float, init: Path | None, regression: bool) -> Path:
    """Train a teacher, or a one-step regression model as a baseline; `init` is a model to start from."""
    pairs = crops.pairs(config.seed)
    torch.manual_seed(config.seed)
    network = SwinUNet(NETWORK) if init is None else _read(init)[0]
    description = bundled.Description(network.config, SCHEDULE, 1 if regression else SCHEDULE.steps)
    return train(config, TeacherObjective(network, description, learning_rate), pairs)


def train_student(
    config: TrainConfig, crops: Crops, learning_rate: float, teacher: Path, weights: StudentWeights
) -> Path:
    """Distil a teacher from `train_teacher`; the student starts as a copy of it."""
    pairs = crops.pairs(config.seed)
    torch.manual_seed(config.seed)
    network, taught = _read(teacher)
    description = bundled.Description(network.config, taught.schedule, 1)
    student = deepcopy(network).requires_grad_(True)
    return train(config, StudentObjective(student, network, description, weights, learning_rate), pairs)


def mix(student: Path, teacher: Path, share: float, output: Path) -> Path:
    """Write a model with the weights share * student + (1 - share) * teacher, for a milder effect than the student's.

    A student starts as a copy of its teacher, so models between the two work well (network
    interpolation, ESRGAN, arXiv 1809.00219, section 3.4). Raises UserError unless 0 <= share <= 1.
    """
    if not 0 <= share <= 1:
        raise UserError(f"Share {share:g} is out of range: choose one from 0 to 1.")
    network, description = _read(student)
    weights = dict(_read(teacher)[0].named_parameters())
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.lerp_(weights[name], 1 - share)
    bundled.save(output, network, description)
    return output


def _read(path: Path) -> tuple[SwinUNet, bundled.Description]:
    file = read_weights(path)
    if bundled.METADATA_KEY not in file.metadata:
        raise UserError(f"{file.name} was not created by `onestep-sr train`: choose a model.safetensors that was.")
    description = bundled.describe(file)
    network = bundled.build(description)
    fill(network, file, "One-Step SR", torch.float32)
    return network.requires_grad_(True), description
