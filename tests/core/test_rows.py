"""Results computed by bands, compared with results computed at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from formula_model import Formula, formula_model, picture
from onestep_sr.sr_models.canvas.noise import canvas_noise
from onestep_sr.sr_models.codecs.pixel_shuffle import PixelShuffleCodec
from onestep_sr.sr_models.core.finish import finished_rows
from onestep_sr.sr_models.core.model import SRModel
from onestep_sr.sr_models.core.options import DEFAULTS, UpscaleOptions
from onestep_sr.sr_models.core.recipe import Recipe
from onestep_sr.sr_models.core.rows import Run, result_rows
from onestep_sr.sr_models.core.tile_policy import TilePolicy
from onestep_sr.sr_models.core.upscale import upscale
from torch.nn.functional import pixel_unshuffle


@pytest.fixture
def model() -> SRModel:
    return formula_model()


def banded(model, image, options=DEFAULTS, first=0, policy=None, **reports) -> torch.Tensor:
    """The result's rows from `first` on, before the colour match, computed one row of tiles at a time."""
    run = Run(model, options, policy or TilePolicy(), **reports)
    bands = list(result_rows(run, image, banded=True, first=first))
    assert first or len(bands) > 1, "made at once"
    return torch.cat(bands, dim=1)


@pytest.mark.parametrize("color", ["none", "wavelet", "adain"])
@pytest.mark.parametrize(
    ("height", "width", "scale", "tile", "overlap"),
    [(75, 30, 4, 64, 16), (90, 17, 2.5, None, None), (41, 33, 8, 96, 48), (70, 21, 1, 64, 0), (100, 9, 3.3, 128, 64)],
)
def test_bands_equal_the_picture_computed_at_once(model, color, height, width, scale, tile, overlap):
    image, options = picture(height, width), UpscaleOptions(scale, tile, overlap, color, seed=5)
    whole = upscale(model, image, options)[0]
    plain, size = banded(model, image, options), whole.shape[1:]
    rows = finished_rows(lambda top, bottom: plain[:, top:bottom], image, size, color)
    bands = [rows(top, min(top + 37, size[0])) for top in range(0, size[0], 37)]
    assert torch.allclose(torch.cat(bands, dim=1), whole, atol=1e-4)


@pytest.mark.parametrize("first", [1, 63, 64, 130, 299])
def test_bands_can_begin_anywhere(model, first):
    image = picture(75, 30)
    assert torch.allclose(banded(model, image, first=first), banded(model, image)[:, first:], atol=1e-6)


def test_tiles_that_overflow_in_bands_are_computed_in_float32(model):
    class Overflowing(Formula):
        dtype = torch.float16

        def in_float32(self):
            return Formula()

        def __call__(self, latent, condition, timestep):
            overflow = torch.where(latent[:, :1] > 1.2, torch.inf, 0)
            overflows.append(bool(overflow.any()))
            return super().__call__(latent, condition, timestep) + overflow

    overflows = []
    image = picture(75, 30)
    rescued = banded(replace(model, denoiser=Overflowing()), image)
    assert torch.allclose(rescued, banded(model, image), atol=1e-6)
    assert any(overflows) and not all(overflows)


def test_progress_counts_every_tile(model):
    seen = []
    banded(model, picture(40, 40), progress=lambda done, total, preview: seen.append((done, total, preview.shape)))
    # 40 x 40 latent pixels, windows of 16 that share at least 4: 3 x 3
    assert [(done, total) for done, total, _ in seen] == [(done, 9) for done in range(1, 10)]


class AutoencoderLike(PixelShuffleCodec):
    """Is decoded as a whole."""

    is_local = False


class AddsNoise:
    """A step whose result is the network's plus its noise, so that both show."""

    evaluations = noises = 1

    def __call__(self, network, latent, noise, lr):
        return network(latent, lr, torch.zeros(len(latent))) + noise


class Pointwise(Formula):
    """A network that depends on what it is shown, not on the tile; out of memory in its calls number `fails`."""

    def __init__(self, *fails: int):
        self.fails, self.calls, self.conditions = fails, 0, []

    def run(self, work, shape, condition=None):
        self.conditions.append(condition)
        return work(self)

    def __call__(self, latent, lr, timestep):
        self.calls += 1
        if self.calls in self.fails:
            raise MemoryError
        return torch.tanh(0.5 * latent + 0.1 * pixel_unshuffle(lr, 4))


def three_steps(network: Pointwise) -> SRModel:
    settings = {"scale": 1, "tile": 16, "overlap": 4, "multiple": 8}
    steps = {"further": (AddsNoise(), AddsNoise()), "result_share": 0.25}
    recipe = Recipe("test", "Test model", "", AddsNoise(), **settings, **steps)
    look = {"conditioner": lambda picture, index: [picture], "look_again": lambda seen, picture: [*seen, picture]}
    return SRModel(recipe, network, AutoencoderLike(4), **look)


def test_further_steps_start_from_the_result_and_see_it_mixed_with_the_picture():
    image, network, codec = picture(64, 64), Pointwise(), PixelShuffleCodec(4)
    result = upscale(three_steps(network), image, UpscaleOptions(1, color="none", seed=3))
    latent, seen, looks = codec.encode(image), image, [image]
    for noise in canvas_noise(latent, 3, 0, 3).chunk(3, 1):
        latent = network(latent, seen * 2 - 1, 0) + noise
        seen = 0.75 * image + 0.25 * codec.decode(latent).clamp(0, 1)
        looks.append(seen)
    assert torch.allclose(result, codec.decode(latent).clamp(0, 1), atol=1e-5)
    for number, condition in enumerate(network.conditions):
        assert len(condition) == number + 1
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(condition, looks, strict=False))


def test_a_further_step_that_runs_out_of_memory_starts_again_in_smaller_tiles():
    image, options = picture(160, 128), UpscaleOptions(1, tile=128, color="none", batch=1)
    whole = upscale(three_steps(Pointwise()), image, options)
    network, reports = Pointwise(3), []  # of two tiles in each step
    progress = lambda done, total, preview: reports.append((done, total))  # noqa: E731
    again = upscale(three_steps(network), image, options, progress=progress)
    assert torch.allclose(again, whole, atol=1e-5)
    done, total = reports[-1]
    assert done == total == network.calls - 3 > 6
