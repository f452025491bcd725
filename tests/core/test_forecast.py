"""The forecast against the run that it is of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onestep_sr.sr_models.codecs.pixel_shuffle import PixelShuffleCodec
from onestep_sr.sr_models.core.forecast import forecast
from onestep_sr.sr_models.core.model import SRModel
from onestep_sr.sr_models.core.process import flow_level
from onestep_sr.sr_models.core.recipe import Recipe
from onestep_sr.sr_models.core.step import OneStep
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families.bundled import BUNDLED
from onestep_sr.sr_models.families.loading import load, recipe_of
from onestep_sr.sr_models.families.one_step_lora import TSD_SR
from onestep_sr.sr_models.families.resshift import RESSHIFT_FAMILY

FLOW = OneStep(1000.0, level=flow_level(1000.0))

FACTOR = 4


class Watched:
    """A denoiser that remembers the windows that it was given."""

    dtype = torch.float32

    def __init__(self) -> None:
        self.windows: list[tuple[int, ...]] = []

    def run(self, work, shape):
        return work(self)

    def tiles_at_once(self, shape):
        return 1

    def __call__(self, latent, condition, timestep):
        self.windows.append(tuple(latent.shape[-2:]))
        return torch.zeros_like(latent)


@settings(max_examples=60, deadline=None)
@given(
    image=st.tuples(st.integers(8, 90), st.integers(8, 90)),
    scale=st.floats(1, 8),
    own_scale=st.sampled_from([1, 4]),
    shortest=st.sampled_from([0, 24]),
    tile=st.sampled_from([None, 40, 64, 130]),
    overlap=st.sampled_from([None, 0, 12]),
)
def test_the_run_is_as_foretold(image, scale, own_scale, shortest, tile, overlap) -> None:
    multiple = 8
    recipe = Recipe("test", "Test", "", FLOW, scale=own_scale, tile=16, overlap=4, multiple=multiple, shortest=shortest)
    denoiser, reports = Watched(), []
    result = upscale(
        SRModel(recipe, denoiser, PixelShuffleCodec(FACTOR)),
        torch.rand(1, 3, *image),
        scale,
        tile=tile,
        overlap=overlap,
        progress=lambda done, total, preview: reports.append(total),
    )
    told = forecast(recipe, FACTOR, image, scale, tile, overlap)
    assert told.result == result.shape[-2:]
    assert set(reports) == {told.rows * told.columns} and len(reports) == reports[0]
    assert {(height * FACTOR, width * FACTOR) for height, width in denoiser.windows} == {told.tile}
    assert told.work == sum(height * width for height, width in denoiser.windows)


def test_it_refuses_what_the_run_refuses() -> None:
    with pytest.raises(UserError, match="at least 8 px"):
        forecast(TSD_SR, 8, (4, 90), 4)
    with pytest.raises(UserError, match="Overlap 300 does not fit"):
        forecast(TSD_SR, 8, (90, 90), 4, 512, 300)
    with pytest.raises(UserError, match=r"Tile 4096 is too large for TSD-SR .*: choose 3072 px or less"):
        forecast(TSD_SR, 8, (1024, 1024), 4, 4096)


def test_a_recipe_is_known_without_reading_weights(tmp_path) -> None:
    bundled, factor = recipe_of(BUNDLED)
    model = load().model
    assert (bundled, factor) == (model.recipe, model.codec.factor)
    published = tmp_path / "SinSR_v2.pth"
    published.write_bytes(b"never opened")
    assert recipe_of(published) == (RESSHIFT_FAMILY["sinsr"], 4)
    assert recipe_of(published, "tad-sr") == (RESSHIFT_FAMILY["tad-sr"], 4)
    with pytest.raises(UserError, match="does not exist"):
        recipe_of(tmp_path / "absent.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"12345678")
    with pytest.raises(UserError, match="cut short or not a safetensors file"):
        recipe_of(broken)
