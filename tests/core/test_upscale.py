"""The pipeline: sizes, tiles, noise, alpha, progress and failures, mostly with networks that are one formula."""

import inspect
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from formula_model import formula_model
from hypothesis import given, settings
from hypothesis import strategies as st
from onestep_sr.sr_models.canvas.resample_rows import rows_of
from onestep_sr.sr_models.canvas.target import Side
from onestep_sr.sr_models.codecs.autoencoder import AutoencoderCodec
from onestep_sr.sr_models.codecs.pixel_shuffle import PixelShuffleCodec
from onestep_sr.sr_models.core import report, rows
from onestep_sr.sr_models.core.finish import finished_rows, visible
from onestep_sr.sr_models.core.model import SRModel
from onestep_sr.sr_models.core.network_denoiser import NetworkDenoiser
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.process import flow_level
from onestep_sr.sr_models.core.recipe import Recipe
from onestep_sr.sr_models.core.schedule import ResShiftSchedule
from onestep_sr.sr_models.core.step import OneStep, ResShiftStep
from onestep_sr.sr_models.core.tile_policy import TilePolicy
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families.bundled import BUNDLED
from onestep_sr.sr_models.families.loading import load
from onestep_sr.sr_models.networks.swin_unet import SwinUNet, SwinUNetConfig
from onestep_sr.sr_models.networks.vq_autoencoder import VQAutoencoder, VQConfig
from PIL import Image
from places import PHOTOS

PHOTO = PHOTOS / "houses.png"
FLOW = OneStep(1000.0, level=flow_level(1000.0))
ONE_STEP = ResShiftStep(ResShiftSchedule(steps=4, kappa=0.5, min_noise=0.2))


def nothing(latent, condition, timestep):
    """With one flow step the result is the bicubically enlarged picture."""
    return torch.zeros_like(latent)


class Ready:
    """A denoiser that needs no preparation."""

    def __init__(self, network):
        self.network = network

    def run(self, work, shape, condition=None):
        return work(self.network)

    def tiles_at_once(self, shape):
        return 1

    dtype = torch.float32


def model(network=nothing, step=None, **changes) -> SRModel:
    """Windows of 16 latent pixels, 64 px of the result, by default."""
    settings = {"tile": 16, "overlap": 4, "multiple": 8, **changes}
    return SRModel(Recipe("test", "Test model", "", step or FLOW, **settings), Ready(network), PixelShuffleCodec(4))


def picture(height, width, channels=3, batch=1, seed=0):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def bicubic(image, factor):
    return F.interpolate(image, scale_factor=factor, mode="bicubic")


def padded(image, multiple=8):
    """Mirrored at the right and the bottom, which is how a network sees a picture that does not fill its windows."""
    down, right = (-side % multiple for side in image.shape[2:])
    mode = "reflect" if down < image.shape[2] and right < image.shape[3] else "edge"
    return torch.tensor(np.pad(image.numpy(), ((0, 0), (0, 0), (0, down), (0, right)), mode=mode))


class Recorder:
    """A step that keeps the picture and remembers every window."""

    evaluations, noises = 1, 1

    def __init__(self):
        self.windows = []

    def __call__(self, network, latent, noise, condition):
        self.windows.append((latent.clone(), noise.clone(), condition.clone()))
        return latent


def place_of(window, canvas):
    """Where on the canvas (c, h, w) a window (c, h', w') was cut; its first pixel is found, the rest compared."""
    [(row, column)] = (canvas[0] == window[0, 0, 0]).nonzero().tolist()
    rows, columns = slice(row, row + window.shape[1]), slice(column, column + window.shape[2])
    assert torch.equal(canvas[:, rows, columns], window)
    return rows, columns


# Size


@settings(deadline=None, max_examples=60)
@given(st.integers(8, 70), st.integers(8, 70), st.floats(1, 8) | st.sampled_from([1, 1.5, 2, 3, 4, 6, 8]))
def test_the_result_has_exactly_the_requested_size(height, width, scale):
    image = picture(height, width)
    before = image.clone()
    result = upscale(model(), image, UpscaleOptions(scale))
    assert result.shape == (1, 3, round(scale * height), round(scale * width))
    assert result.dtype == torch.float32
    assert 0 <= result.min() <= result.max() <= 1
    assert torch.equal(image, before)


@settings(deadline=None, max_examples=40)
@given(st.integers(8, 60), st.integers(8, 60), st.integers(1, 300), st.data())
def test_a_network_that_adds_nothing_gives_bicubic_whatever_the_tiles(height, width, tile, data):
    side = -(-tile // 32) * 32
    overlap = data.draw(st.none() | st.integers(0, side // 2))
    image = picture(height, width)
    result = upscale(model(), image, UpscaleOptions(4, tile=tile, overlap=overlap))
    expected = bicubic(padded(image), 4)[..., : 4 * height, : 4 * width].clamp(0, 1)
    assert torch.allclose(result, expected, atol=1e-5)
    # The padding reaches no farther than bicubic's two pixels.
    assert torch.allclose(result[..., :-8, :-8], bicubic(image, 4).clamp(0, 1)[..., :-8, :-8], atol=1e-5)


def test_other_scales_go_through_the_networks_own():
    image = picture(24, 32)
    small = F.interpolate(bicubic(image, 4).clamp(0, 1), size=(36, 48), mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.allclose(upscale(model(), image, UpscaleOptions(1.5)), small, atol=1e-5)
    large = bicubic(bicubic(image, 2), 4).clamp(0, 1)
    assert torch.allclose(upscale(model(), image, UpscaleOptions(8)), large, atol=1e-5)


def test_a_network_of_scale_1_gets_the_lr_at_the_codecs_resolution():
    """Scale 1 and factor 8, as TSD-SR: the picture is enlarged first, 8 px to a latent pixel."""
    step = Recorder()
    recipe = Recipe("test", "Test", "", step, scale=1, tile=8, overlap=2, multiple=1)
    image = picture(22, 30)
    result = upscale(SRModel(recipe, Ready(nothing), PixelShuffleCodec(8)), image, UpscaleOptions(4))
    assert torch.allclose(result, bicubic(image, 4).clamp(0, 1), atol=1e-5)
    assert {(tuple(z.shape[2:]), tuple(c.shape[2:])) for z, _, c in step.windows} == {((8, 8), (64, 64))}


@pytest.mark.skipif(not PHOTO.exists(), reason="needs tests/photos")
def test_twice_as_large_keeps_more_than_halving_first_would():
    photo = np.array(Image.open(PHOTO).convert("RGB"))[:128, :128]
    hr = torch.tensor(photo).permute(2, 0, 1)[None] / 255
    lr = F.interpolate(hr, size=(64, 64), mode="bicubic", antialias=True).clamp(0, 1)
    halved = F.interpolate(lr, size=(32, 32), mode="bicubic", antialias=True).clamp(0, 1)

    def psnr(image):
        return -10 * (image - hr).square().mean().log10()

    assert psnr(upscale(model(), lr, UpscaleOptions(2))) > psnr(upscale(model(), halved, UpscaleOptions(4))) + 1


@pytest.mark.parametrize("scale", [1, 1.3, 2, 3.5, 4])
def test_scales_below_the_networks_own_shrink_its_result(scale):
    step = Recorder()
    image = picture(24, 32)
    result = upscale(model(step=step), image, UpscaleOptions(scale))
    assert sum(latent.shape[-2] * latent.shape[-1] for latent, _, _ in step.windows) == 2 * 3 * 16 * 16
    own = upscale(model(step=Recorder()), image, UpscaleOptions(4))
    size = (round(24 * scale), round(32 * scale))
    shrunk = own if scale == 4 else F.interpolate(own, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.allclose(result, shrunk, atol=1e-5)


# The way to the network


def frames_below_upscale(network_kind, step) -> list[str]:
    """The core's functions between `upscale` and the network, for that kind of denoiser."""
    found = []

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, latent, lr, timestep):
            names = [frame.function for frame in inspect.stack() if "sr_models" in frame.filename]
            found.append(names[: names.index("upscale")])
            return torch.zeros_like(latent)

    upscale(replace(model(step=step), denoiser=network_kind(Network())), picture(16, 16))
    return found[0]


@pytest.mark.parametrize("step", [FLOW, ONE_STEP, ResShiftStep(ONE_STEP.schedule, 4)], ids=["SD", "TAD-SR", "ResShift"])
def test_the_network_is_at_most_five_frames_below_upscale(step):
    *way, denoiser = reversed(frames_below_upscale(NetworkDenoiser, step))
    assert denoiser == "__call__"  # the denoiser's own, which is the core's network
    assert len(way) <= 5, way


def test_no_noise_is_drawn_where_none_is_needed(monkeypatch):
    image, drawn = picture(20, 30), []
    monkeypatch.setattr(rows, "canvas_noise", lambda *args: drawn.append(args))
    random = torch.random.get_rng_state()
    assert torch.allclose(upscale(model(), image), upscale(model(), image, UpscaleOptions(seed=1)))
    assert not drawn and torch.equal(torch.random.get_rng_state(), random)
    upscale(model(step=ONE_STEP), image)
    assert len(drawn) == 1


def test_the_conditioner_sees_each_picture_once_and_the_denoiser_gets_its_condition():
    pictures, conditions = [], []

    def conditioner(image, index):
        pictures.append(image)
        return f"condition {index}"

    class Listening(Ready):
        def run(self, work, shape, condition=None):
            conditions.append(condition)
            return work(self.network)

    images = picture(20, 30, channels=4, batch=2)
    upscale(replace(model(), denoiser=Listening(nothing), conditioner=conditioner), images)
    assert torch.equal(torch.cat(pictures), images[:, :3])
    assert conditions == ["condition 0", "condition 1"]


@pytest.mark.parametrize("count", [1, 3])
def test_prompts_for_another_number_of_pictures_are_refused_before_any_work(count):
    def conditioner(image, index):
        raise AssertionError("work")

    words = rf"number of prompts \(2\) is not that of the images \({count}\): connect one prompt, or one per image"
    with pytest.raises(UserError, match=words):
        upscale(replace(model(), conditioner=conditioner, pictures=2), picture(20, 30, batch=count))


# Tiles and noise


@pytest.mark.parametrize("tile", [32, 64, 100, 128])
def test_noise_condition_and_picture_are_cut_from_one_canvas(tile):
    image = picture(37, 50)
    whole, tiled = Recorder(), Recorder()
    upscale(model(step=whole), image, UpscaleOptions(4, tile=512, seed=7))
    upscale(model(step=tiled), image, UpscaleOptions(4, tile=tile, overlap=12, seed=7))
    [canvas] = whole.windows
    assert canvas[1].shape == (1, 48, 40, 56)  # padded to multiples of 8
    assert canvas[1].mean().abs() < 0.01
    assert canvas[1].std().item() == pytest.approx(1, abs=0.01)
    assert torch.allclose(canvas[2], padded(image) * 2 - 1, atol=1e-6)
    covered = torch.zeros(40, 56)
    for latent, noise, condition in tiled.windows:
        side = min(-(-tile // 32) * 8, 40)
        assert noise.shape[-2] == side
        rows, columns = place_of(noise[0], canvas[1][0])
        covered[rows, columns] += 1
        assert torch.equal(latent, canvas[0][..., rows, columns])
        assert torch.equal(condition, canvas[2][..., rows, columns])
    assert covered.min() >= 1
    assert len(tiled.windows) > 1


def test_the_seed_decides_the_noise():
    image = torch.full((1, 3, 16, 16), 0.5)
    noisy = model(lambda latent, condition, t: 0.2 * latent, ONE_STEP)
    results = [upscale(noisy, image, UpscaleOptions(4, seed=seed)) for seed in (0, 0, 1)]
    assert torch.equal(results[0], results[1])
    assert (results[0] - results[2]).abs().mean() > 0.01


def flat(height, width):
    return torch.full((1, 3, height, width), 0.5)


def gradient(height, width):
    return torch.linspace(0.3, 0.7, width).expand(1, 3, height, width)


@pytest.mark.parametrize("make", [flat, gradient])
def test_flat_areas_show_no_blocks_for_a_network_that_looks_at_single_pixels(make):
    """The network passes much of the noise on, so separate noise per tile would show as a block."""
    noisy = model(lambda latent, condition, t: torch.tanh(0.4 * latent), ONE_STEP)
    image = make(40, 72)
    whole, tiled = (upscale(noisy, image, UpscaleOptions(4, tile=tile)) for tile in (512, 64))
    assert whole.std() > 0.05
    assert torch.allclose(tiled, whole, atol=1e-5)


@pytest.mark.parametrize("band", [1, 2**18])
def test_tiles_agree_on_the_noise_of_every_step(band, monkeypatch):
    """The same for a step that draws noise after each pass of the network."""
    monkeypatch.setattr(rows, "BAND", band)
    step = ResShiftStep(ONE_STEP.schedule, 4, stochastic=True)
    noisy = model(lambda latent, condition, t: torch.tanh(0.4 * latent), step)
    image = gradient(40, 72)
    whole, tiled, other = (
        upscale(noisy, image, UpscaleOptions(4, tile=tile, seed=seed)) for tile, seed in ((512, 3), (64, 3), (512, 4))
    )
    assert torch.allclose(tiled, whole, atol=1e-5)
    assert (whole - other).abs().mean() > 0.01
    plain = replace(noisy, recipe=replace(noisy.recipe, step=ResShiftStep(ONE_STEP.schedule, 4)))
    assert (whole - upscale(plain, image, UpscaleOptions(4, tile=512, seed=3))).abs().mean() > 0.01


@pytest.mark.parametrize("overlap", [8, 16, 32])
def test_windows_that_disagree_are_joined_as_smoothly_as_the_overlap_allows(overlap):
    """Each window comes out flat, in its own mean grey: between them no step may exceed a smoothstep's."""

    def flattened(latent, condition, timestep):
        return latent - latent.mean()

    image = gradient(16, 120)
    result = upscale(model(flattened), image, UpscaleOptions(4, tile=64, overlap=overlap))
    row = result[0, 0, 30, ::4]  # one column of each latent pixel
    between_neighbours = 0.4 / 119 * 16  # no two window means differ by more than a window's worth of the ramp
    assert row.diff().abs().max() <= 1.5 / (overlap // 4) * between_neighbours
    assert row[-1] - row[0] > 0.3


def random_network(**changes) -> SRModel:
    """A small Swin U-Net whose last layer is not zero, on windows of twice its native size."""
    config = SwinUNetConfig(48, 3, 32, (1, 1), 1, 32, window=4, native_size=16, bicubic_skip=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SwinUNet(config).eval().requires_grad_(False)
        torch.nn.init.normal_(network.out[2].weight, std=0.01)
    return model(NetworkDenoiser(network), **{"step": ONE_STEP, "tile": 32, "overlap": 12, **changes})


@pytest.mark.skipif(not BUNDLED.exists(), reason="needs the bundled weights")
@pytest.mark.parametrize("make", [flat, gradient])
def test_the_bundled_network_shows_no_grid_at_tile_borders(make):
    """What tiles change is small, and no steeper where windows begin and end, or far below what a picture can hold."""
    image, bundled = make(32, 96), load().model
    whole = upscale(bundled, image, UpscaleOptions(4, tile=512))
    change = upscale(bundled, image, UpscaleOptions(4, tile=128, overlap=64)) - whole
    assert change.abs().mean() < 1 / 255
    steps = change.diff(dim=-1).mean(dim=(0, 1, 2)).abs()[3::4]  # from latent column i to i + 1
    starts = (0, 16, 32, 48, 64)
    borders = {start - 1 for start in starts[1:]} | {start + 31 for start in starts[:-1]}
    elsewhere = [i for i in range(95) if i not in borders]
    assert steps[sorted(borders)].mean() < max(2 * steps[elsewhere].mean(), 0.01 / 255)


@pytest.mark.parametrize(("height", "width", "scale"), [(8, 8, 4), (9, 31, 4), (33, 17, 2.5), (20, 11, 6)])
def test_a_real_network_takes_any_size(height, width, scale):
    result = upscale(random_network(), picture(height, width), UpscaleOptions(scale))
    assert result.shape == (1, 3, round(scale * height), round(scale * width))
    assert torch.isfinite(result).all()


# Colour, alpha, batches


def test_the_recipes_colour_match_is_the_default():
    def cast(latent, condition, timestep):
        return torch.full_like(latent, -0.2)

    image = picture(16, 24) * 0.4 + 0.3  # room for the cast within [0, 1]
    plain = bicubic(image, 4)
    corrected = upscale(model(cast, color="wavelet"), image, UpscaleOptions(4))
    assert torch.allclose(corrected, plain, atol=1e-5)
    kept = upscale(model(cast, color="wavelet"), image, UpscaleOptions(4, color="none"))
    assert torch.allclose(kept, plain + 0.1, atol=1e-5)
    matched = upscale(model(cast), image, UpscaleOptions(4, color="adain"))
    assert torch.allclose(matched.mean((2, 3)), image.mean((2, 3)), atol=1e-5)


@pytest.mark.parametrize("scale", [1, 2.5, 4, 8])
def test_alpha_is_kept_and_enlarged_on_its_own(scale):
    image = picture(13, 22, channels=4)
    noisy = model(lambda latent, condition, t: 0.5 * latent, ONE_STEP)
    result = upscale(noisy, image, UpscaleOptions(scale))
    assert result.shape == (1, 4, round(scale * 13), round(scale * 22))
    assert torch.equal(result[:, :3], upscale(noisy, image[:, :3], UpscaleOptions(scale)))
    alone = F.interpolate(image[:, 3:], size=result.shape[2:], mode="bicubic").clamp(0, 1)
    assert torch.allclose(result[:, 3:], alone, atol=1e-6)


@pytest.mark.parametrize("channels", [3, 4])
def test_a_picture_of_a_batch_has_the_same_result_as_alone(channels):
    images = picture(11, 18, channels, batch=3)
    together = upscale(random_network(), images, UpscaleOptions(4, seed=3))
    for index in range(3):
        alone = upscale(random_network(), images[index : index + 1], UpscaleOptions(4, seed=3))
        assert torch.equal(together[index : index + 1], alone)


# Progress


def test_progress_counts_every_tile_and_its_preview_grows():
    def inverting(latent, condition, timestep):
        return 2 * latent  # latent - 2 latent

    image, seen = picture(20, 45), []
    upscale(
        model(inverting),
        image,
        UpscaleOptions(4),
        progress=lambda *report: seen.append((*report[:2], report[2].clone())),
    )
    # 24 x 48 padded, windows of 16 that share at least 4: 2 x 4
    assert [(done, total) for done, total, _ in seen] == [(i, 8) for i in range(1, 9)]
    plain = F.avg_pool2d(bicubic(padded(image), 4), 4)[0, :, :20, :45]
    before = 0
    for _, _, preview in seen:
        assert preview.shape == (3, 20, 45)
        assert 0 <= preview.min() <= preview.max() <= 1
        inverted = ((preview - (1 - plain).clamp(0, 1)).abs() < 1e-5).all(dim=0)
        assert (inverted | ((preview - plain.clamp(0, 1)).abs() < 1e-5).all(dim=0)).all()
        assert inverted.sum() > before
        before = inverted.sum()
    assert before == 20 * 45


def test_progress_of_a_batch_counts_on():
    counts = []
    upscale(
        model(),
        picture(16, 22, batch=3),
        UpscaleOptions(4),
        progress=lambda done, total, preview: counts.append((done, total)),
    )
    assert counts == [(i, 6) for i in range(1, 7)]


@pytest.mark.parametrize("kind", [RuntimeError, InterruptedError, KeyboardInterrupt])
def test_an_exception_from_the_callback_ends_the_run_unchanged(kind):
    calls = []

    def stop(done, total, preview):
        calls.append(done)
        if done == 2:
            raise kind("stopped by the user")

    with pytest.raises(kind, match="stopped by the user"):
        upscale(model(), picture(32, 64), UpscaleOptions(4), progress=stop)
    assert calls == [1, 2]


# Before and after the tiles


class Counting(PixelShuffleCodec):
    """A codec that counts the latent pixels that it was asked for."""

    def __init__(self):
        super().__init__(4)
        self.encoded = 0

    def encode(self, image, stage=None):
        self.encoded += image.shape[-2] * image.shape[-1] // 16
        return super().encode(image)


@pytest.mark.parametrize("scale", [4, 2.5])
@pytest.mark.parametrize("band", [1, 16 * 48, 40 * 48])
def test_a_large_picture_is_prepared_in_bands_with_the_same_result(band, scale, monkeypatch):
    image, options = picture(90, 45, channels=4, batch=2), UpscaleOptions(scale, color="adain", seed=5)
    whole = upscale(formula_model(), image, options)
    monkeypatch.setattr(rows, "BAND", band)
    assert torch.allclose(upscale(formula_model(), image, options), whole, atol=1e-6)


def test_the_first_tile_does_not_wait_for_the_whole_picture(monkeypatch):
    """A canvas of 96 x 48, and bands of 16 rows: with the first tile, a sixth of it is prepared."""
    monkeypatch.setattr(rows, "BAND", 16 * 48)
    codec, seen = Counting(), []

    def progress(done, total, preview):
        seen.append((done, codec.encoded))
        assert preview.shape == (3, 90, 45) and 0 <= preview.min() <= preview.max() <= 1
        if done == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        upscale(replace(model(), codec=codec), picture(90, 45), progress=progress)
    assert seen == [(1, 16 * 48), (2, 16 * 48), (3, 16 * 48), (4, 16 * 48), (5, 2 * 16 * 48)]


def test_a_preview_begins_with_the_picture_and_grows_over_all_bands(monkeypatch):
    monkeypatch.setattr(rows, "BAND", 16 * 48)
    image, previews = picture(90, 45) * 0.5, []
    white = model(lambda latent, condition, timestep: latent - 1)  # x_0 = z - v = 1
    upscale(white, image, progress=lambda done, total, preview: previews.append(preview.clone()))
    assert (previews[0][:, :16, :16] == 1).all()
    assert torch.allclose(previews[0][:, 16:], image[0, :, 16:], atol=0.3)  # what codec and picture call a pixel
    assert (previews[0][:, 30:] <= 0.5 + 1e-6).all() and (previews[-1] == 1).all()


@pytest.mark.parametrize("band", [1, 2**18])
def test_the_preview_of_a_large_picture_has_fewer_pixels(band, monkeypatch):
    """Every third latent pixel of a canvas of 96 x 48, whichever tiles they come from."""
    monkeypatch.setattr(rows, "BAND", band)
    monkeypatch.setattr(report, "PREVIEW_SIDE", 32)
    image, previews = picture(90, 45), []
    upscale(model(), image, progress=lambda done, total, preview: previews.append(preview.clone()))
    assert {preview.shape for preview in previews} == {(3, 30, 15)}
    whole = F.avg_pool2d(bicubic(padded(image), 4), 4)[0, :, :90:3, :45:3].clamp(0, 1)
    assert torch.allclose(previews[-1], whole, atol=1e-5)


def autoencoder_model(**changes) -> SRModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vq = VQAutoencoder(VQConfig(channels=32, multipliers=(1, 1, 2), blocks_per_level=1, codes=8)).eval()
    return replace(model(**changes), codec=AutoencoderCodec(vq, 4, 3, budget=2**24))


@pytest.mark.parametrize("last", [3, None])
def test_an_autoencoder_reports_before_the_first_tile_and_can_be_stopped_there(last):
    image, heard = picture(40, 24), []

    def stage(done, total):
        heard.append(("stage", done, total))
        if len(heard) == last:
            raise InterruptedError

    def run():
        return upscale(autoencoder_model(), image, stage=stage, progress=lambda done, *_: heard.append(("tile", done)))

    if last is not None:
        with pytest.raises(InterruptedError):
            run()
        assert len(heard) == last and {kind for kind, *_ in heard} == {"stage"}
        return
    run()
    first_tile, last_tile = heard.index(("tile", 1)), len(heard) - 1 - [kind for kind, *_ in heard[::-1]].index("tile")
    assert first_tile > 10 and last_tile < len(heard) - 10
    for part in (heard[:first_tile], heard[last_tile + 1 :]):
        rows_done = [done for _, done, _ in part]
        assert rows_done == sorted(rows_done) and rows_done[-1] == part[-1][2]


def test_a_large_resize_is_done_by_channel_and_reported(monkeypatch):
    image, options = picture(24, 32), UpscaleOptions(6)
    expected, heard = upscale(model(), image, options), []
    monkeypatch.setattr(rows, "LARGE", 36 * 48 - 1)
    result = upscale(model(), image, options, stage=lambda done, total: heard.append((done, total)))
    assert torch.allclose(result, expected, atol=1e-6)
    assert heard[:3] == [(1, 3), (2, 3), (3, 3)]


# Failures


def refusal(*args, **options) -> str:
    with pytest.raises(UserError) as caught:
        upscale(*args, **options)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert ". " not in message
    return message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("channel", [1, 3])
def test_a_picture_that_is_not_finite_is_refused(value, channel):
    image = picture(16, 16, channels=4)
    image[0, channel, 3, 5] = value
    assert "The picture holds values that are not finite numbers" in refusal(model(), image)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_single_tile_that_is_not_finite_ends_the_run(broken):
    calls = []

    def failing(latent, condition, timestep):
        calls.append(1)
        result = torch.zeros_like(latent)
        if len(calls) == 3:
            result[0, 5, 7, 7] = broken
        return result

    message = refusal(model(failing), picture(32, 64))
    assert message == "The network gave values that are not finite: run it in float32."
    assert len(calls) == 3


@pytest.mark.parametrize(("height", "width"), [(7, 100), (100, 7), (1, 1)])
def test_a_picture_under_8_px_is_refused(height, width):
    expected = f"The picture is {width} x {height} px: it needs at least 8 px a side."
    assert refusal(model(), picture(height, width)) == expected


@pytest.mark.parametrize("scale", [0.5, 0, -4, 9, 8.01, float("nan"), float("inf")])
def test_a_scale_out_of_range_is_refused(scale):
    expected = f"Scale {scale:g} is out of range: choose one from 1 to 8."
    assert refusal(model(), picture(16, 16), UpscaleOptions(scale)) == expected


@pytest.mark.parametrize("overlap", [33, 64, 1000, -1])
def test_an_overlap_over_half_a_tile_is_refused(overlap):
    expected = f"Overlap {overlap} does not fit a tile of 64: choose 0 to 32."
    assert refusal(model(), picture(16, 16), UpscaleOptions(overlap=overlap)) == expected
    assert refusal(model(), picture(16, 16), UpscaleOptions(tile=33, overlap=overlap)) == expected


@pytest.mark.parametrize("tile", [0, -64])
def test_a_tile_below_1_px_is_rejected(tile):
    message = refusal(model(), picture(16, 16), UpscaleOptions(tile=tile))
    assert message == f"Tile {tile} is too small: choose 32 px or more."


def test_an_unknown_colour_match_is_refused():
    assert "Colour match 'sepia' is unknown" in refusal(model(), picture(16, 16), UpscaleOptions(color="sepia"))


def allocate_the_impossible():
    torch.empty(2**58, dtype=torch.uint8)  # 256 PiB


def raising(error):
    def run():
        raise error

    return run


def failing_network(fail):
    def network(latent, condition, timestep):
        fail()
        return latent

    return network


@pytest.mark.parametrize(
    "fail",
    [
        allocate_the_impossible,
        raising(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")),
        raising(MemoryError()),
        raising(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes.")),
        raising(RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)")),
        raising(RuntimeError("CUDA error: out of memory")),
    ],
    ids=["real", "cuda", "python", "windows", "mps", "driver"],
)
def test_too_little_memory_says_what_to_change(fail):
    message = refusal(model(failing_network(fail)), picture(16, 16))
    assert message == "There is not enough memory: choose a smaller tile or a smaller scale."


def test_other_errors_of_a_network_pass_unchanged():
    network = failing_network(raising(RuntimeError("expected scalar type Half")))
    with pytest.raises(RuntimeError, match="expected scalar type Half"):
        upscale(model(network), picture(16, 16))


def test_a_target_in_place_of_a_scale_gives_the_same_pixels() -> None:
    model, image = load().model, torch.rand(1, 3, 20, 28, generator=torch.Generator().manual_seed(4))
    by_scale = upscale(model, image, UpscaleOptions(3.0))
    assert torch.equal(upscale(model, image, UpscaleOptions(target=Side("longest", 84))), by_scale)
    assert upscale(model, image, UpscaleOptions(target=Side("height", 61))).shape == (1, 3, 61, 85)


def test_a_picture_larger_than_its_target_is_shrunk_without_the_network() -> None:
    image, heard = torch.rand(1, 4, 40, 60, generator=torch.Generator().manual_seed(4)), []
    image[:, 3] = 1

    def forbidden(*arguments):
        raise AssertionError

    model = replace(load().model, denoiser=SimpleNamespace(run=forbidden, dtype=torch.float32))
    result = upscale(model, image, UpscaleOptions(target=Side("longest", 45)), notice=heard.append)
    expected = F.interpolate(image, size=(30, 45), mode="bicubic", antialias=True).clamp(0, 1)
    assert (result - expected).abs().max() < 1e-5
    assert heard == ["The picture is larger than the size to reach: it was shrunk, without the network."]


# Strength and wrap


def spectrum(image):
    """Power over the frequencies (rows, columns) of a picture's inside, faded out towards its borders."""
    window = torch.hann_window(image.shape[-1], periodic=False, dtype=torch.float64)
    return torch.fft.fft2((image.double() - image.mean()) * window[:, None] * window).abs().square().sum((0, 1))


@pytest.fixture(scope="module")
def bundled():
    return load().model


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_strength_leaves_the_pictures_own_frequencies_alone(bundled, strength):
    image = 0.3 + 0.4 * picture(32, 32)
    full, weak = (upscale(bundled, image, UpscaleOptions(strength=value)) for value in (1, strength))
    change, frequency = spectrum(weak - full), torch.fft.fftfreq(128).abs()
    own = torch.maximum(frequency[:, None], frequency) < 0.75 / 8
    above = torch.maximum(frequency[:, None], frequency) > 1.25 / 8
    assert change[own].sum() < 1e-3 * change.sum()
    left = spectrum(weak - bicubic(image, 4))[above].sum() / spectrum(full - bicubic(image, 4))[above].sum()
    assert left == pytest.approx(strength**2, abs=0.01)


def test_strength_1_changes_no_bit_and_bands_change_nothing(bundled):
    image = picture(40, 24, channels=4)
    assert torch.equal(upscale(bundled, image, UpscaleOptions(strength=1.0)), upscale(bundled, image))
    weak = upscale(bundled, image, UpscaleOptions(strength=0.3))
    run = rows.Run(bundled.at_detail(None), UpscaleOptions(strength=0.3), TilePolicy())
    shown = visible(image)
    [found] = rows.result_rows(run, shown[:, :3])
    finished = finished_rows(rows_of(found), shown, (160, 96), "none", 0.3)
    parts = [finished(top, min(160, top + 37)) for top in range(0, 160, 37)]
    assert torch.allclose(torch.cat(parts, dim=-2), weak[0], atol=1e-5)


def smooth_texture(seed):
    """(1, 3, 24, 24), periodic in both directions."""
    image = F.pad(picture(24, 24, seed=seed), (2, 2, 2, 2), mode="circular")
    return (0.5 + 2 * (F.avg_pool2d(image, 5, 1) - 0.5)).clamp(0, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "period"), [(4, 4), (2.5, 5)], ids=["x4", "x2.5"])
def test_the_steps_across_the_wrap_are_as_those_inside(bundled, scale, period):
    """Compared with every `period`-th step, because steps depend on their place in a network's pixels."""
    options = UpscaleOptions(scale, wrap="both")
    across, inside = torch.zeros(2), torch.zeros(2)
    for shift in range(0, 24, round(period / scale)):  # each compared place is once at the wrap, and else inside
        texture = torch.cat([smooth_texture(seed).roll((shift, shift), (2, 3)) for seed in range(2)])
        result = upscale(bundled, texture, options)
        steps = [(result - result.roll(1, dim)).abs().mean([0, 1, 5 - dim])[::period] for dim in (2, 3)]
        across += torch.stack([step[0] for step in steps])
        inside += torch.stack([step[1:].mean() for step in steps])
    assert ((across / inside - 1).abs() < 0.05).all()


@pytest.mark.parametrize(("wrap", "wrapped"), [("x", {3}), ("y", {2}), ("both", {2, 3})], ids=["x", "y", "both"])
def test_only_the_chosen_sides_wrap(wrap, wrapped):
    image = smooth_texture(0)
    result = upscale(model(), image, UpscaleOptions(wrap=wrap))
    everywhere = bicubic(image.repeat(1, 1, 3, 3), 4)[..., 96:192, 96:192].clamp(0, 1)
    for dim in (2, 3):
        first, expected = result.select(dim, 0), everywhere.select(dim, 0)
        inner = (first - expected)[..., 16:80].abs().max()
        assert inner < 1e-4 if dim in wrapped else inner > 1e-3


@settings(deadline=None, max_examples=30)
@given(st.integers(8, 40), st.integers(8, 40), st.floats(1, 8), st.sampled_from(["x", "y", "both"]))
def test_a_wrapped_result_has_exactly_the_requested_size(height, width, scale, wrap):
    image = picture(height, width, channels=4)
    options = UpscaleOptions(scale, wrap=wrap, strength=0.5)
    assert upscale(model(), image, options).shape == (1, 4, round(scale * height), round(scale * width))


@pytest.mark.parametrize("wrong", [{"strength": 1.1}, {"strength": -0.1}, {"strength": "1"}, {"wrap": "xy"}], ids=str)
def test_a_strength_or_wrap_out_of_bounds_is_refused(wrong):
    with pytest.raises(UserError, match="choose"):
        UpscaleOptions(**wrong)
