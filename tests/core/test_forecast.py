"""Forecasts, compared with the actual runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onestep_sr.sr_models.codecs.autoencoder import AutoencoderCodec
from onestep_sr.sr_models.codecs.pixel_shuffle import PixelShuffleCodec
from onestep_sr.sr_models.core.forecast import forecast, workspace
from onestep_sr.sr_models.core.model import SRModel
from onestep_sr.sr_models.core.network_denoiser import NetworkDenoiser
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.process import flow_level
from onestep_sr.sr_models.core.recipe import Recipe
from onestep_sr.sr_models.core.rows import Run, result_rows
from onestep_sr.sr_models.core.step import OneStep
from onestep_sr.sr_models.core.tile_policy import TilePolicy
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families.bundled import BUNDLED
from onestep_sr.sr_models.families.loading import load, recipe_of
from onestep_sr.sr_models.families.resshift import RECIPES, VALUES_PER_PIXEL
from onestep_sr.sr_models.families.tsd_sr import TSD_SR
from onestep_sr.sr_models.networks.swin_unet import SwinUNet
from onestep_sr.sr_models.networks.vq_autoencoder import VQAutoencoder

FLOW = OneStep(1000.0, level=flow_level(1000.0))

FACTOR = 4


class Watched:
    """A denoiser that records the windows that it gets."""

    dtype = torch.float32

    def __init__(self) -> None:
        self.windows: list[tuple[int, ...]] = []

    def run(self, work, shape, condition=None):
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
def test_the_forecast_matches_the_run(image, scale, own_scale, shortest, tile, overlap) -> None:
    multiple = 8
    recipe = Recipe("test", "Test", "", FLOW, scale=own_scale, tile=16, overlap=4, multiple=multiple, shortest=shortest)
    denoiser, reports = Watched(), []
    model, options = SRModel(recipe, denoiser, PixelShuffleCodec(FACTOR)), UpscaleOptions(scale, tile, overlap)
    result = upscale(
        model, torch.rand(1, 3, *image), options, progress=lambda done, total, preview: reports.append(total)
    )
    told = forecast(recipe, FACTOR, image, options)
    assert told.result == result.shape[-2:]
    assert set(reports) == {told.rows * told.columns} and len(reports) == reports[0]
    assert {(height * FACTOR, width * FACTOR) for height, width in denoiser.windows} == {told.tile}
    assert told.work == sum(height * width for height, width in denoiser.windows)


@settings(max_examples=60, deadline=None)
@given(
    image=st.tuples(st.integers(8, 90), st.integers(8, 90)),
    scale=st.floats(1, 8),
    own_scale=st.sampled_from([1, 4]),
    tile=st.sampled_from([None, 40, 130]),
)
def test_the_forecast_matches_a_run_by_bands(image, scale, own_scale, tile) -> None:
    recipe = Recipe("test", "Test", "", FLOW, scale=own_scale, tile=16, overlap=4, multiple=8)
    denoiser, reports, options = Watched(), [], UpscaleOptions(scale, tile)
    run = Run(
        SRModel(recipe, denoiser, PixelShuffleCodec(FACTOR)),
        options,
        TilePolicy(),
        progress=lambda done, total, preview: reports.append((done, total)),
    )
    count = sum(rows.shape[1] for rows in result_rows(run, torch.rand(1, 3, *image), banded=True))
    told = forecast(recipe, FACTOR, image, options)
    tiles = told.rows * told.columns
    assert told.result[0] == count and reports == [(done, tiles) for done in range(1, tiles + 1)]
    assert told.work == sum(height * width for height, width in denoiser.windows)


@given(image=st.tuples(st.integers(8, 500), st.integers(8, 500)), scale=st.floats(1, 8))
def test_the_networks_work_follows_from_the_scale(image, scale) -> None:
    """A network of scale 4 runs on the picture as it is up to 4, one of scale 1 at the result's size."""
    own = Recipe("test", "Test", "", FLOW, scale=4, tile=16, overlap=4, multiple=8)
    canvas = tuple(-(-side // 8) * 8 for side in image)
    if scale <= 4:
        assert forecast(own, FACTOR, image, UpscaleOptions(scale)).work == windows(canvas)
    enlarged = replace(own, scale=1)
    size = forecast(enlarged, FACTOR, image, UpscaleOptions(scale))
    canvas = tuple(-(-side // (8 * FACTOR)) * 8 for side in size.result)
    assert size.work == windows(canvas)


def windows(canvas: tuple[int, ...]) -> int:
    """Latent pixels in the fewest windows of 16 that share at least 4."""
    work = 1
    for side in canvas:
        work *= side if side <= 16 else 16 * (1 + math.ceil((side - 16) / 12))
    return work


def test_the_forecast_rejects_what_the_run_rejects() -> None:
    with pytest.raises(UserError, match="at least 8 px"):
        forecast(TSD_SR, 8, (4, 90), UpscaleOptions())
    with pytest.raises(UserError, match="Overlap 300 does not fit"):
        forecast(TSD_SR, 8, (90, 90), UpscaleOptions(4, 512, 300))
    with pytest.raises(UserError, match=r"Tile 4096 is too large for TSD-SR .*: choose 3072 px or less"):
        forecast(TSD_SR, 8, (1024, 1024), UpscaleOptions(4, 4096))


def test_a_recipe_is_known_without_reading_weights(tmp_path) -> None:
    bundled, factor = recipe_of(BUNDLED)
    model = load().model
    assert (bundled, factor) == (model.recipe, model.codec.factor)
    published = sparse(tmp_path / "SinSR_v2.safetensors")
    assert recipe_of(published) == (RECIPES["sinsr"], 4)
    assert recipe_of(published, "tad-sr") == (RECIPES["tad-sr"], 4)
    with pytest.raises(UserError, match="does not exist"):
        recipe_of(tmp_path / "absent.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(bytes(range(200, 208)))
    with pytest.raises(UserError, match="cut short or not a safetensors file"):
        recipe_of(broken)


def sparse(path: Path) -> Path:
    """A sparse safetensors file with the published network's names and shapes."""
    with torch.device("meta"):
        state = SwinUNet().state_dict()
    header, end = {}, 0
    for name, tensor in state.items():
        begin, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def published_model(dtype=torch.float16) -> SRModel:
    """TAD-SR's parts without values."""
    with torch.device("meta"):
        network, vq = SwinUNet().to(dtype), VQAutoencoder().to(dtype)
    return SRModel(RECIPES["tad-sr"], NetworkDenoiser(network, VALUES_PER_PIXEL), AutoencoderCodec(vq, 4, 3))


@pytest.mark.parametrize(
    ("side", "tile"), [(64, None), (256, None), (512, 256), (1024, None), (1024, 2048), (1000, 512)]
)
def test_the_workspace_is_that_of_one_tile_or_of_the_autoencoders_bands(side, tile):
    """Per latent pixel of a tile 3600 values; of the autoencoder the attention's input, keys and values (512 channels)
    at a quarter of the result's side, and 18 rows of distances to 8192 codes, four at a time."""
    grid = -(-side // 64) * 64
    window = min(grid, 64 * (-(-(tile or 4 * RECIPES["tad-sr"].tile) // 256)))
    bands = 3 * 512 * grid**2 + 18 * 4 * 8192 * grid
    expected = max(2 * 3600 * window**2, int(2 * bands / 0.7))
    told = workspace(published_model(), (side, side), UpscaleOptions(4, tile))
    assert told == expected
    if side == 1024:
        assert told < 6 * 2**30  # all maps of 4096 px at once have 24 GiB


def test_a_budget_limits_the_workspace_and_pictures_without_an_autoencoder_need_none():
    options, model = UpscaleOptions(4, tile=256), published_model()
    limited = replace(model, codec=AutoencoderCodec(model.codec.autoencoder, 4, 3, budget=100 * 2**20))
    assert workspace(limited, (1024, 1024), options) == 100 * 2**20
    assert workspace(load().model, (1024, 1024), UpscaleOptions()) == 0
    with pytest.raises(UserError, match="at least 8 px"):
        workspace(model, (4, 90), options)
