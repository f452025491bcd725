"""A model with a formula as its network, so that a whole result can be calculated by hand."""

from __future__ import annotations

import torch
from onestep_sr.sr_models.codecs.pixel_shuffle import PixelShuffleCodec
from onestep_sr.sr_models.core.model import SRModel
from onestep_sr.sr_models.core.recipe import Recipe
from onestep_sr.sr_models.core.schedule import ResShiftSchedule
from onestep_sr.sr_models.core.step import ResShiftStep


class Formula:
    """A network that depends on neighbours, noise and place in the tile, so that every mistake shows."""

    dtype = torch.float32

    def run(self, work, shape, condition=None):
        return work(self)

    def tiles_at_once(self, shape):
        return 2

    def memory(self, shape):
        return 0

    def in_float32(self):
        return self

    def __call__(self, latent, condition, timestep):
        return torch.tanh(
            0.5 * latent + 0.2 * torch.roll(latent, 1, dims=-2) + 0.3 * latent.mean((-1, -2), keepdim=True)
        )


def formula_model() -> SRModel:
    step = ResShiftStep(ResShiftSchedule(steps=4, kappa=0.5, min_noise=0.2))
    recipe = Recipe("test", "Test model", "", step, tile=16, overlap=4, multiple=8)
    return SRModel(recipe, Formula(), PixelShuffleCodec(4))


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    noise = torch.rand(1, channels, height + 4, width + 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.avg_pool2d(noise, 5, 1)
