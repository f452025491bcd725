"""Forecasts, compared with the actual runs."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from onestep_sr.sr_models.codecs import seamless
from onestep_sr.sr_models.codecs.autoencoder import AutoencoderCodec
from onestep_sr.sr_models.codecs.pixel_shuffle import PixelShuffleCodec
from onestep_sr.sr_models.codecs.seamless.maps import Store
from onestep_sr.sr_models.core.forecast import GPU, HELD_PER_PIXEL, MAIN, Need, forecast, needs, workspace
from onestep_sr.sr_models.core.memory import SMALLEST_BUDGET
from onestep_sr.sr_models.core.model import SRModel
from onestep_sr.sr_models.core.network_denoiser import NetworkDenoiser
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.process import flow_level
from onestep_sr.sr_models.core.recipe import Footprint, Recipe
from onestep_sr.sr_models.core.rows import Run, result_rows
from onestep_sr.sr_models.core.step import OneStep
from onestep_sr.sr_models.core.tile_policy import TilePolicy
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families.bundled import BUNDLED
from onestep_sr.sr_models.families.loading import load, recipe_of
from onestep_sr.sr_models.families.resshift import RECIPES, VALUES_PER_PIXEL
from onestep_sr.sr_models.families.tad_faceir import RECIPES as FACES
from onestep_sr.sr_models.families.tsd_sr import TSD_SR
from onestep_sr.sr_models.networks.swin_unet import SwinUNet
from onestep_sr.sr_models.networks.vq_autoencoder import FACES_F8, VQAutoencoder, VQConfig
from places import ROOT

FLOW = OneStep(1000.0, level=flow_level(1000.0))

FACTOR = 4
ENVIRONMENT = {"PYTHONPATH": str(ROOT.parent), "OMP_NUM_THREADS": "1"}


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


def test_a_budget_limits_the_workspace():
    options, model = UpscaleOptions(4, tile=256), published_model()
    limited = replace(model, codec=AutoencoderCodec(model.codec.autoencoder, 4, 3, budget=100 * 2**20))
    assert workspace(limited, (1024, 1024), options) == 100 * 2**20
    assert workspace(load().model, (1024, 1024), UpscaleOptions()) == 835 * 256**2 * 4
    with pytest.raises(UserError, match="at least 8 px"):
        workspace(model, (4, 90), options)


def test_a_batchs_results_wait_in_memory() -> None:
    run = forecast(TSD_SR, 8, (128, 96), UpscaleOptions(4))
    assert run.memory_of_batch(1) == run.memory
    assert run.memory_of_batch(5) - run.memory == 4 * HELD_PER_PIXEL * 512 * 384


def test_the_level_follows_from_free_memory() -> None:
    def need(needed: float, free: float, kind: str = MAIN) -> Need:
        return Need(kind, int(needed * 1e9), int(free * 1e9))

    assert need(1, 10).level == "fits" and str(need(0.05, 10)) == "50 MB of main memory"
    assert need(9, 10).level == "tight"
    assert str(need(9, 10)) == "9.0 GB of main memory, of which 10.0 GB are free: close other programs"
    assert str(need(9, 8, GPU)) == "9.0 GB of GPU memory, of which 8.0 GB are free: choose a smaller tile"
    large = forecast(recipe_of(BUNDLED)[0], 4, (2000, 3000), UpscaleOptions(8))
    short = replace(needs(large, 1, torch.device("cpu"))[0], free=int(16e9))
    assert short.level == "too little" and str(short).endswith(" are free: choose a smaller size or fewer images")


def test_on_a_gpu_the_network_needs_its_memory() -> None:
    run = forecast(recipe_of(BUNDLED)[0], 4, (256, 256), UpscaleOptions())
    assert run.network == 835 * 256**2 * 4  # 64 channels: values of three maps at the result's size and of the first
    [both] = needs(run, 1, torch.device("cpu"))
    main, gpu = needs(run, 1, torch.device("cuda"), lambda device: 10**9)
    assert (both.needed, main.needed, gpu.needed) == (run.memory + run.network, run.memory, run.network)
    unknown = forecast(replace(TSD_SR, footprint=Footprint()), 8, (128, 96), UpscaleOptions(4))
    assert [need.kind for need in needs(unknown, 1, torch.device("cuda"), lambda device: 10**9)] == [MAIN]


def test_on_a_gpu_weights_a_tile_and_feature_maps_are_counted() -> None:
    """TSD-SR to 4096 px: 2.1 billion weights of 2 bytes, and maps of 512 values of 2 bytes per pixel, 17 GB."""
    run = forecast(TSD_SR, 8, (1024, 1024), UpscaleOptions(4))
    weights, maps, tile = 2 * TSD_SR.footprint.weights, 4096**2 * 512 * 2, 64**2 * TSD_SR.footprint.per_pixel * 4

    def told(gpu: float, main: float) -> list[Need]:
        free = {"cuda": int(gpu * 1e9), "cpu": int(main * 1e9)}
        return needs(run, 1, torch.device("cuda"), lambda device: free[device.type])

    main, gpu = told(80, 64)
    assert (main.needed, gpu.needed, gpu.movable) == (run.memory, weights + max(tile, SMALLEST_BUDGET), weights)
    assert (main.level, gpu.level) == ("fits", "fits")
    main, gpu = told(8, 64)  # 70 % of what the weights leave has maps, the rest is in main memory
    assert main.needed == run.memory + maps - int(0.7 * (8e9 - weights))
    assert (main.level, gpu.level) == ("fits", "fits")
    main, gpu = told(3, 16)
    assert main.needed == run.memory + maps and main.level == "too little"
    assert gpu.level == "tight" and str(gpu).endswith("are free: a part will be in main memory, which is slower")
    assert told(0.05, 64)[1].level == "too little"


KL = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}


@pytest.mark.parametrize("name", ["tsdsr", "tad-sr", "tad-faceir"])
def test_the_feature_maps_are_those_of_the_run(name: str, monkeypatch) -> None:
    """The largest sum of maps during a decode, at a width of 32 in place of the published 128 or 64."""
    networks = {
        "tsdsr": lambda: AutoencoderKL(
            block_out_channels=(32, 64, 128, 128), layers_per_block=2, latent_channels=16, **KL
        ),
        "tad-sr": lambda: VQAutoencoder(VQConfig(32, codes=64)),
        "tad-faceir": lambda: VQAutoencoder(replace(FACES_F8, channels=32, codes=64)),
    }
    recipes = {"tsdsr": TSD_SR} | RECIPES | FACES
    alive, peak = {}, 0
    new, release = Store.new, Store.release

    def counted(self, height, width, channels):
        nonlocal peak
        made = new(self, height, width, channels)
        alive[id(made)] = height * width * channels
        peak = max(peak, sum(alive.values()))
        return made

    monkeypatch.setattr(Store, "new", counted)
    monkeypatch.setattr(Store, "release", lambda self, each: (alive.pop(id(each), 0), release(self, each)))
    network = networks[name]().eval().requires_grad_(False)
    channels, side = {"tsdsr": (16, 16), "tad-sr": (3, 32), "tad-faceir": (8, 16)}[name]
    result = seamless.decode(network, torch.randn(1, channels, side, side), budget=2**30)
    narrower = {"tsdsr": 4, "tad-sr": 4, "tad-faceir": 2}[name]
    assert narrower * peak / result[0, 0].numel() == recipes[name].footprint.mapped


LIMITED = """
import resource, sys, torch
torch.set_num_threads(1)
from onestep_sr import UpscaleOptions, load, upscale
from onestep_sr.sr_models.core.forecast import forecast

model, options = load().model, UpscaleOptions(float(sys.argv[1]), strength=float(sys.argv[4]))
upscale(model, torch.rand(1, 3, 32, 32))  # libraries and their threads
side = int(sys.argv[2])
image = torch.rand(1, 3, side, side)
used = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
run = forecast(model.recipe, model.codec.factor, (side, side), options)
resource.setrlimit(resource.RLIMIT_DATA, (used + int(float(sys.argv[3]) * (run.memory + run.network)),) * 2)
print(tuple(upscale(model, image, options).shape))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can limit a process's memory")
@pytest.mark.parametrize(("scale", "strength"), [(4, 1), (2.5, 1), (4, 0.5)], ids=["x4", "x2.5", "x4 weaker"])
def test_a_run_fits_into_the_memory_that_was_told(scale: float, strength: float) -> None:
    """A process that cannot allocate more than the estimate finishes; with a fifth of it, it does not."""

    def run(share: float) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", LIMITED, str(scale), "384", str(share), str(strength)]
        return subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | ENVIRONMENT)

    finished = run(1.0)
    side = round(384 * scale)
    assert finished.stdout == f"(1, 3, {side}, {side})\n", finished.stderr[-500:]
    assert run(0.2).returncode != 0
