"""Tiles when memory runs out or values overflow, and the limits of a tile's size."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from onestep_sr.sr_models.codecs.pixel_shuffle import PixelShuffleCodec
from onestep_sr.sr_models.core.model import SRModel
from onestep_sr.sr_models.core.network_denoiser import NetworkDenoiser
from onestep_sr.sr_models.core.options import DEFAULTS, UpscaleOptions
from onestep_sr.sr_models.core.process import flow_level
from onestep_sr.sr_models.core.recipe import Recipe
from onestep_sr.sr_models.core.rows import Run, result_rows
from onestep_sr.sr_models.core.step import OneStep
from onestep_sr.sr_models.core.tile_policy import TilePolicy
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


def calls_that_failed(denoiser: Limited) -> int:
    return sum(shape[0] * shape[2] * shape[3] > denoiser.pixels for shape in denoiser.shapes)


def banded(model: SRModel, image: torch.Tensor, policy: TilePolicy | None = None, **reports) -> torch.Tensor:
    """The result by rows of tiles."""
    run = Run(model, DEFAULTS, policy or TilePolicy(), **reports)
    return torch.cat(list(result_rows(run, image, banded=True)), dim=1)[None]


def test_memory_that_runs_out_halves_the_batch_then_the_tile():
    exact = upscale(model(Limited()), picture(), UpscaleOptions(tile=256))
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


def test_too_little_memory_for_any_tile_is_reported_in_one_sentence():
    with pytest.raises(UserError, match="not enough memory"):
        upscale(model(Limited(pixels=100)), picture())


def test_only_tiles_that_overflow_are_computed_again_in_float32():
    image = picture()
    image[..., 40:44, 40:44] = 1.0
    denoiser = Limited(dtype=torch.float16, at_once=2)
    rescued = upscale(model(denoiser), image)
    assert torch.allclose(rescued, upscale(model(Limited()), image), atol=1e-6)
    tiles = sum(shape[0] for shape in denoiser.shapes)
    assert 9 < tiles < 18


def test_a_tile_that_does_not_fit_by_the_denoisers_estimate_is_never_tried():
    class Careful(Limited):
        def tiles_at_once(self, shape):
            return self.pixels // (shape[2] * shape[3])

    notices: list[str] = []
    careful = Careful(pixels=16 * 16)
    result = upscale(model(careful), picture(), notice=notices.append)
    assert calls_that_failed(careful) == 0
    assert notices == ["Memory ran out: the rest of this run uses tiles of 64 px."]
    assert torch.equal(result, upscale(model(Limited()), picture(), UpscaleOptions(tile=64, overlap=32)))
    with pytest.raises(UserError, match="not enough memory"):
        upscale(model(Careful(pixels=1)), picture())


def test_changes_to_the_requested_tiles_are_reported():
    notices: list[str] = []
    upscale(model(Limited(pixels=16 * 16)), picture(), notice=notices.append)
    assert notices == ["Memory ran out: the rest of this run uses tiles of 64 px."]
    notices.clear()
    image = picture()
    image[..., 4:8, 4:8] = 1.0
    upscale(model(Limited(dtype=torch.float16)), image, notice=notices.append)
    assert notices == ["1 of 9 tiles overflowed in torch.float16 and were computed in float32."]
    notices.clear()
    upscale(model(Limited()), picture(), notice=notices.append)
    assert not notices


LIMITS = pytest.mark.parametrize(
    ("pixels", "at_once"), [(2 * 32 * 32, 4), (16 * 16, 1)], ids=["fewer tiles at once", "smaller tiles"]
)


@LIMITS
def test_memory_runs_out_once_for_a_batch_of_pictures(pixels, at_once):
    images = torch.cat([picture(), picture().flip(-1), picture().flip(-2)])
    limited, notices = Limited(pixels, at_once=at_once), []
    together = upscale(model(limited), images, notice=notices.append)
    first, rest = Limited(pixels, at_once=at_once), Limited(pixels, at_once=at_once)
    upscale(model(first), images[:1])
    assert calls_that_failed(limited) == calls_that_failed(first) > 0
    assert notices == ["Memory ran out: the rest of this run uses tiles of 64 px."] * (at_once == 1)
    for index in range(3):
        assert torch.equal(together[index : index + 1], upscale(model(rest), images[index : index + 1]))


@LIMITS
def test_a_policy_carries_over_to_calls_with_pictures_of_other_sizes(pixels, at_once):
    limited, policy, notices = Limited(pixels, at_once=at_once), TilePolicy(), []
    for size in ((40, 40), (64, 72), (20, 90), (90, 20)):
        upscale(model(limited), picture(*size), notice=notices.append, policy=policy)
        banded(model(limited), picture(*size), policy, notice=notices.append)
    assert calls_that_failed(limited) == 1
    assert len(notices) == (at_once == 1)


def test_a_narrow_pictures_limit_holds_for_a_wide_one():
    """A size that was too large for a narrow window is not tried for a square one."""
    limited, policy, notices = Limited(16 * 16), TilePolicy(), []
    upscale(model(limited), picture(64, 15), notice=notices.append, policy=policy)  # 32 x 16 latent pixels
    upscale(model(limited), picture(64, 64), notice=notices.append, policy=policy)
    assert calls_that_failed(limited) == 1
    assert notices == ["Memory ran out: the rest of this run uses tiles of 64 px."]


class FullLater(Limited):
    """Memory is enough for some calls, and then only for small tiles."""

    def __call__(self, latent, lr, timestep):
        result = super().__call__(latent, lr, timestep)
        if len(self.shapes) == 8:
            self.pixels = 16 * 16
        return result


def test_bands_continue_where_memory_ran_out():
    image, reports, notices = picture(160, 72), [], []
    later = FullLater()
    result = banded(
        model(later), image, progress=lambda done, total, _: reports.append((done, total)), notice=notices.append
    )
    assert torch.allclose(result, upscale(model(Limited()), image), atol=1e-5)
    assert notices == ["Memory ran out: the rest of this run uses tiles of 64 px."]
    sides = [shape[2] for shape in later.shapes]
    assert sides == [32] * 9 + [16] * (len(sides) - 9)
    # The two finished rows of three tiles are not done again: less than half of the whole's small tiles are left out.
    finished = 6
    assert finished < len(sides) - 9 < len(TilePolicy(tile=16).plan((160, 72), model(later).recipe, 4, DEFAULTS))
    total = finished + len(sides) - 9
    assert reports == [(i, 21) for i in range(1, 9)] + [(i, total) for i in range(finished + 1, total + 1)]


def test_tiles_that_overflow_in_bands_are_reported_once():
    notices: list[str] = []
    image = picture(160, 72)
    image[..., 4:8, 4:8] = image[..., 150:154, 4:8] = 1.0
    result = banded(model(Limited(dtype=torch.float16)), image, notice=notices.append)
    assert torch.allclose(result, upscale(model(Limited()), image), atol=1e-6)
    assert notices == ["2 of 21 tiles overflowed in torch.float16 and were computed in float32."]


def test_bands_have_the_same_failures():
    with pytest.raises(UserError, match="too large for Test model"):
        list(result_rows(Run(model(Limited()), UpscaleOptions(tile=384), TilePolicy()), picture(100, 100), banded=True))
    with pytest.raises(MemoryError, match="smallest tile"):
        banded(model(Limited(pixels=100)), picture())


def test_a_windows_limit_is_reported_in_pixels():
    with pytest.raises(UserError, match=r"^Tile 384 is too large for Test model: choose 256 px or less\.$"):
        upscale(model(Limited()), picture(100, 100), UpscaleOptions(tile=384))
    upscale(model(Limited()), picture(60, 60), UpscaleOptions(tile=384))  # the picture itself is smaller


def test_the_float32_copy_leaves_the_network_unchanged():
    network = torch.nn.Linear(4, 4).to(torch.bfloat16)
    denoiser = NetworkDenoiser(network)
    assert denoiser.dtype == torch.bfloat16 and denoiser.in_float32().dtype == torch.float32
    assert network.weight.dtype == torch.bfloat16
