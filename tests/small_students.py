"""A teacher and a student of the bundled kind, small enough to train in a test."""

from __future__ import annotations

from copy import deepcopy

import torch
from onestep_sr.sr_models.canvas.degradation import Degradation
from onestep_sr.sr_models.codecs.pixel_shuffle import PixelShuffleCodec
from onestep_sr.sr_models.core.schedule import ResShiftSchedule
from onestep_sr.sr_models.families import bundled
from onestep_sr.sr_models.networks.swin_unet import SwinUNet, SwinUNetConfig
from onestep_sr.sr_models.training.data import CropPairs
from onestep_sr.sr_models.training.pixel_objectives import Batch, StudentObjective, StudentWeights
from places import PHOTOS

NETWORK = SwinUNetConfig(
    latent_channels=48,
    channels=32,
    multipliers=(1, 1),
    blocks_per_level=1,
    swin_channels=32,
    mlp_ratio=2,
    native_size=16,
    bicubic_skip=4,
)
SCHEDULE = ResShiftSchedule(steps=4, kappa=0.5, min_noise=0.2)
CODEC = PixelShuffleCodec(4)
TEACHER, STUDENT = bundled.Description(NETWORK, SCHEDULE, 4), bundled.Description(NETWORK, SCHEDULE, 1)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(seed: int = 0) -> SwinUNet:
    torch.manual_seed(seed)
    made = SwinUNet(NETWORK)
    torch.nn.init.normal_(made.out[2].weight, std=0.02)
    return made


def batch(count: int = 2, size: int = 16) -> Batch:
    pairs = [CropPairs(PHOTOS, 4 * size, Degradation(), 5)[i] for i in range(count)]
    return Batch.from_pairs(torch.stack([p["hr"] for p in pairs]), torch.stack([p["lr"] for p in pairs]), CODEC)


def student_objective(weights: StudentWeights) -> StudentObjective:
    teacher = network()
    return StudentObjective(deepcopy(teacher), teacher, STUDENT, weights, 1e-3)
