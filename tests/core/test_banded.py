"""Results made by bands, against the same made at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from formula_model import Formula, formula_model, picture
from onestep_sr.sr_models.canvas.resize import target_size
from onestep_sr.sr_models.core.banded import BandedRun, matched_rows
from onestep_sr.sr_models.core.model import SRModel
from onestep_sr.sr_models.core.upscale import upscale


@pytest.fixture
def model() -> SRModel:
    return formula_model()


@pytest.mark.parametrize("color", ["none", "wavelet", "adain"])
@pytest.mark.parametrize(
    ("height", "width", "scale", "tile", "overlap"),
    [(75, 30, 4, 64, 16), (90, 17, 2.5, None, None), (41, 33, 8, 96, 48), (70, 21, 1, 64, 0), (100, 9, 3.3, 128, 64)],
)
def test_bands_equal_the_picture_made_at_once(model, color, height, width, scale, tile, overlap):
    image, size = picture(height, width), target_size(height, width, scale)
    whole = upscale(model, image, scale, tile=tile, overlap=overlap, color=color, seed=5)[0]
    plain = torch.cat(list(BandedRun(model, image, size, tile, overlap, seed=5).rows(0)), dim=1)
    rows = matched_rows(lambda top, bottom: plain[:, top:bottom], image, size, color)
    bands = [rows(top, min(top + 37, size[0])) for top in range(0, size[0], 37)]
    assert torch.allclose(torch.cat(bands, dim=1), whole, atol=1e-4)


@pytest.mark.parametrize("first", [1, 63, 64, 130, 299])
def test_bands_can_begin_anywhere(model, first):
    image = picture(75, 30)
    run = BandedRun(model, image, (300, 120))
    whole = torch.cat(list(run.rows(0)), dim=1)
    assert torch.allclose(torch.cat(list(run.rows(first)), dim=1), whole[:, first:], atol=1e-6)


def test_bands_have_the_rescue_in_float32_too(model):
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
    rescued = BandedRun(replace(model, denoiser=Overflowing()), image, (300, 120))
    exact = BandedRun(model, image, (300, 120))
    assert torch.allclose(torch.cat(list(rescued.rows(0)), dim=1), torch.cat(list(exact.rows(0)), dim=1), atol=1e-6)
    assert any(overflows) and not all(overflows)


def test_progress_counts_every_tile(model):
    seen = []
    run = BandedRun(model, picture(40, 40), (160, 160))
    list(run.rows(0, lambda done, total, preview: seen.append((done, total, preview.shape))))
    assert [done for done, _, _ in seen] == list(range(1, len(run.plan) + 1))
    assert {total for _, total, _ in seen} == {len(run.plan)}
