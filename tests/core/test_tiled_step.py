"""What happens to tiles when memory runs out or numbers overflow, and how large a tile may be."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from onestep_sr.sr_models.codecs.pixel_shuffle import PixelShuffleCodec
from onestep_sr.sr_models.core.model import SRModel
from onestep_sr.sr_models.core.network_denoiser import NetworkDenoiser
from onestep_sr.sr_models.core.process import flow_level
from onestep_sr.sr_models.core.recipe import Recipe
from onestep_sr.sr_models.core.step import OneStep
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.errors import UserError

FLOW = OneStep(1000.0, level=flow_level(1000.0))


@dataclass
class Limited:
    """A denoiser that has memory for so many latent pixels at once, and that overflows at marked pixels in float16."""

    pixels: int = 10**9
    dtype: torch.dtype = torch.float32
    at_once: int = 1
    shapes: list[tuple[int, ...]] = field(default_factory=list)

    def run(self, work, shape, condition=None):
        self.prepared = shape
        return work(self)

    def tiles_at_once(self, shape):
        return self.at_once

    def in_float32(self):
        return replace(self, dtype=torch.float32)

    def __call__(self, latent, condition, timestep):
        assert len(latent) <= self.prepared[0]
        self.shapes.append(tuple(latent.shape))
        if latent.shape[0] * latent.shape[2] * latent.shape[3] > self.pixels:
            raise torch.cuda.OutOfMemoryError("out of memory")
        result = 0.25 * latent
        if self.dtype == torch.float16:
            result[(latent > 0.99).flatten(1).any(dim=1)] = torch.inf
        return result


def model(denoiser) -> SRModel:
    recipe = Recipe("test", "Test model", "", FLOW, tile=32, overlap=8, multiple=8, largest_tile=64)
    return SRModel(recipe, denoiser, PixelShuffleCodec(4))


def picture(height=64, width=72) -> torch.Tensor:
    return 0.5 + 0.2 * torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_memory_that_runs_out_halves_the_batch_then_the_tile():
    exact = upscale(model(Limited()), picture(), tile=256)
    small_batch = Limited(pixels=2 * 32 * 32, at_once=4)
    assert torch.equal(upscale(model(small_batch), picture()), upscale(model(Limited()), picture()))
    assert [shape[0] for shape in small_batch.shapes][:3] == [4, 2, 2]
    small_tile = Limited(pixels=16 * 16)
    assert torch.allclose(upscale(model(small_tile), picture()), exact, atol=1e-5)
    assert {shape[2:] for shape in small_tile.shapes} == {(32, 32), (16, 16)}


def test_progress_counts_every_tile_once_after_memory_ran_out():
    reports = []
    upscale(
        model(Limited(pixels=2 * 32 * 32, at_once=8)),
        picture(),
        progress=lambda done, total, preview: reports.append((done, total)),
    )
    assert reports == [(i, 9) for i in range(1, 10)]


def test_memory_that_is_not_enough_for_any_tile_ends_in_a_sentence():
    with pytest.raises(UserError, match="not enough memory"):
        upscale(model(Limited(pixels=100)), picture())


def test_tiles_that_overflow_are_done_again_in_float32_and_only_those():
    image = picture()
    image[..., 40:44, 40:44] = 1.0
    denoiser = Limited(dtype=torch.float16, at_once=2)
    rescued = upscale(model(denoiser), image)
    assert torch.allclose(rescued, upscale(model(Limited()), image), atol=1e-6)
    tiles = sum(shape[0] for shape in denoiser.shapes)
    assert 9 < tiles < 18


def test_what_goes_otherwise_than_asked_is_told():
    notices: list[str] = []
    upscale(model(Limited(pixels=16 * 16)), picture(), notice=notices.append)
    assert notices == ["Memory ran out: tiles of 64 px do the rest of this run."]
    notices.clear()
    image = picture()
    image[..., 4:8, 4:8] = 1.0
    upscale(model(Limited(dtype=torch.float16)), image, notice=notices.append)
    assert notices == ["1 of 9 tiles overflowed in torch.float16 and were done in float32."]
    notices.clear()
    upscale(model(Limited()), picture(), notice=notices.append)
    assert not notices


def test_a_windows_limit_is_told_in_pixels():
    with pytest.raises(UserError, match=r"^Tile 384 is too large for Test model: choose 256 px or less\.$"):
        upscale(model(Limited()), picture(100, 100), tile=384)
    upscale(model(Limited()), picture(60, 60), tile=384)  # the picture itself is smaller


def test_a_networks_rescue_computes_in_float32_and_leaves_the_network_alone():
    network = torch.nn.Linear(4, 4).to(torch.bfloat16)
    denoiser = NetworkDenoiser(network)
    assert denoiser.dtype == torch.bfloat16 and denoiser.in_float32().dtype == torch.float32
    assert network.weight.dtype == torch.bfloat16
