"""Seamless VAE equals the untiled one, within its memory budget, for every autoencoder that it says it supports."""

import copy
import gc
import json
import os
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path

import pytest
import torch
from comfyui_host import ONE_THREAD, installed_hosts, interpreter
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanImage,
    AutoencoderKLHunyuanImageRefiner,
    AutoencoderKLLTXVideo,
    AutoencoderKLTemporalDecoder,
    AutoencoderTiny,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from onestep_sr.sr_models.codecs import seamless
from onestep_sr.sr_models.codecs.seamless import convolve, layers, maps, norm, passes
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.networks.vq_autoencoder import VQAutoencoder, VQConfig
from places import HOST_SCRIPTS, ROOT
from small_autoencoders import stirred
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")

MEGABYTE = 2**20
ROOMY, TIGHT = 1000 * MEGABYTE, int(1.5 * MEGABYTE)
WIDTHS = (32, 64, 64)
SIZES = [(13, 29), (40, 24), (1, 2)]  # of latents
LONG = settings(deadline=None, max_examples=200)


def kl(**changes):
    torch.manual_seed(0)
    levels = len(WIDTHS)
    settings = {
        "block_out_channels": WIDTHS,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "norm_num_groups": 16,
        "layers_per_block": 1,
    }
    return stirred(AutoencoderKL(**settings | changes))


def stable_diffusion():
    return kl(latent_channels=4)


def stable_diffusion_3():
    return kl(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)


def attention_in_levels():
    down = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D")
    return kl(down_block_types=down, up_block_types=("UpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"))


def without_attention():
    return kl(mid_block_add_attention=False)


def vq():
    torch.manual_seed(0)
    return stirred(VQAutoencoder(VQConfig(channels=32, multipliers=(1, 2, 2), blocks_per_level=1, codes=64)))


def vq_of_faces():
    """As many blocks in each level as it wants."""
    torch.manual_seed(0)
    return stirred(VQAutoencoder(VQConfig(32, (1, 2, 2), (1, 2, 3), latent_channels=8, codes=64)))


def asymmetric():
    """Without a mask, its larger decoder is an ordinary one."""
    torch.manual_seed(0)
    settings = {"down_block_out_channels": WIDTHS, "up_block_out_channels": (64, 64, 96), "norm_num_groups": 16}
    settings |= {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    return stirred(AsymmetricAutoencoderKL(**settings, layers_per_up_block=2))


def hunyuan_image():
    torch.manual_seed(0)
    settings = {"block_out_channels": WIDTHS, "layers_per_block": 1, "latent_channels": 8, "sample_size": 32}
    return stirred(AutoencoderKLHunyuanImage(**settings, in_channels=3, out_channels=3, spatial_compression_ratio=4))


KINDS = [stable_diffusion, stable_diffusion_3, attention_in_levels, without_attention, vq, vq_of_faces]
KINDS += [asymmetric, hunyuan_image]


def flux_2(normalised):
    """diffusers' network leaves the patches to its pipeline; ComfyUI's is the same with `bn` applied inside."""
    torch.manual_seed(0)
    settings = {"block_out_channels": WIDTHS, "norm_num_groups": 16, "layers_per_block": 1, "latent_channels": 6}
    levels = len(WIDTHS)
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
    autoencoder = stirred(AutoencoderKLFlux2(**settings, **blocks))
    autoencoder.bn.running_mean.normal_()
    autoencoder.bn.running_var.uniform_(0.5, 2)
    if normalised:
        autoencoder.ps = [2, 2]
        autoencoder.__dict__["_internal_dict"] = dict(autoencoder.config) | {"batch_norm_eps": None}
    return autoencoder


@pytest.mark.parametrize("budget", [ROOMY, TIGHT], ids=["roomy", "tight"])
@pytest.mark.parametrize("normalised", [False, True], ids=["diffusers", "normalised"])
def test_flux_2_with_and_without_its_normalised_patches(normalised, budget):
    autoencoder = flux_2(normalised)
    latent = torch.randn(1, 6, 14, 10)
    picture = torch.rand(1, 3, 61, 45) * 2 - 1  # 15 x 11 of the latent, of which 7 x 5 patches are full
    mode, image = autoencoder.encode(picture).latent_dist.mode(), autoencoder.decode(latent).sample
    if normalised:
        mean, deviation = autoencoder.bn.running_mean, (autoencoder.bn.running_var + autoencoder.bn.eps).sqrt()
        mode, latent = (
            (patches(one[..., :14, :10]) - mean[:, None, None]) / deviation[:, None, None] for one in (mode, latent)
        )
    encoded = seamless.encode(autoencoder, picture, budget=budget)
    assert encoded.shape == mode.shape
    assert (encoded - mode).abs().max() < 1e-4
    assert (seamless.decode(autoencoder, latent, budget=budget) - image).abs().max() < 1e-4


def patches(latent):
    corners = [latent[:, :, top::2, left::2] for top in range(2) for left in range(2)]
    return torch.stack(corners, 2).flatten(1, 2)


def tiny():
    """Two widths, and weights large enough that the clamp and the zeros of ReLU take part."""
    torch.manual_seed(0)
    widths = {"encoder_block_out_channels": (16, 16, 16), "decoder_block_out_channels": (16, 16, 16)}
    blocks = {"num_encoder_blocks": (1, 2, 3), "num_decoder_blocks": (3, 2, 1)}
    return stirred(AutoencoderTiny(**widths, **blocks))


@pytest.mark.parametrize("budget", [ROOMY, MEGABYTE // 4], ids=["roomy", "tight"])
@pytest.mark.parametrize("size", [(61, 45), (40, 24), (2, 3)], ids=str)
def test_tiny_autoencoders_equal_the_untiled_ones_at_odd_sizes_too(size, budget):
    autoencoder = tiny()
    assert seamless.supports(autoencoder)
    picture, latent = torch.rand(2, 3, *size) * 2 - 1, torch.randn(2, 4, size[0] // 2, size[1] // 3) * 2
    seen = []
    encoded = seamless.encode(autoencoder, picture, budget=budget, progress=lambda *at: seen.append(at))
    expected = autoencoder.encode(picture).latents
    assert encoded.shape == expected.shape == (2, 4, -(-size[0] // 4), -(-size[1] // 4))
    assert (encoded - expected).abs().max() < 1e-4
    assert seen[-1][0] == seen[-1][1]
    assert len(seen) > 25 or budget == ROOMY or size[0] < 40  # bands, of 9 layers
    decoded = seamless.decode(autoencoder, latent, budget=budget)
    expected = autoencoder.decode(latent).sample
    assert expected.std() > 0.1
    assert (decoded - expected).abs().max() < 1e-4


def tiny_without_upsampling_conv():
    autoencoder = tiny()
    autoencoder.decoder.layers.append(nn.Upsample(scale_factor=2))
    return autoencoder


def tiny_with_bilinear():
    return AutoencoderTiny(upsample_fn="bilinear")


def tiny_with_silu():
    return AutoencoderTiny(act_fn="silu")


def tiny_with_pool():
    """As ComfyUI's for Flux.2, which norms in its blocks."""
    autoencoder = tiny()
    autoencoder.decoder.layers[2].pool = nn.Sequential(nn.Conv2d(16, 16, 1), nn.GroupNorm(4, 16))
    return autoencoder


def tiny_with_other_factor():
    return AutoencoderTiny(upsampling_scaling_factor=3)


TINY_OTHERS = [tiny_without_upsampling_conv, tiny_with_bilinear, tiny_with_silu, tiny_with_pool, tiny_with_other_factor]


def untiled(autoencoder, direction, canvas):
    """Picture by picture: a batch's own rounding differs by several 1e-5 from that of its pictures."""
    results = []
    for one in canvas.split(1):
        result = getattr(autoencoder, direction)(one)
        if not isinstance(autoencoder, VQAutoencoder):
            result = result.latent_dist.mode() if direction == "encode" else result.sample
        results.append(result)
    return torch.cat(results)


def canvas_for(autoencoder, direction, size, batch=1, factor=4):
    generator = torch.Generator().manual_seed(2)
    if direction == "encode":
        return torch.rand(batch, 3, size[0] * factor, size[1] * factor, generator=generator) * 2 - 1
    channels = autoencoder.config.latent_channels
    return torch.randn(batch, channels, *size, generator=generator)


@pytest.mark.parametrize("budget", [ROOMY, TIGHT], ids=["roomy", "tight"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_untiled_run(kind, direction, size, budget):
    autoencoder = kind()
    assert seamless.supports(autoencoder)
    canvas = canvas_for(autoencoder, direction, size, batch=2)
    kept = canvas.clone()
    seen = []
    result = getattr(seamless, direction)(autoencoder, canvas, budget=budget, progress=lambda *at: seen.append(at))
    expected = untiled(autoencoder, direction, canvas)
    assert result.shape == expected.shape
    assert (result - expected).abs().max() < 1e-4
    assert torch.equal(canvas, kept)
    done, totals = zip(*seen, strict=True)
    assert list(done) == sorted(set(done))
    assert set(totals) == {done[-1]}


def test_a_tight_budget_makes_many_bands_and_a_roomy_one_a_single_band():
    autoencoder = stable_diffusion()
    canvas = canvas_for(autoencoder, "decode", (40, 24))
    calls = {}
    for budget in (ROOMY, TIGHT):
        calls[budget] = 0

        def count(*_, budget=budget):
            calls[budget] += 1

        seamless.decode(autoencoder, canvas, budget=budget, progress=count)
    # post_quant_conv, conv_in and conv_out, two passes for each of six blocks and attention, two upsamplings
    passes_of_decoder = 3 + 2 * (2 + 2 * len(WIDTHS)) + 2 + 2
    assert calls[ROOMY] == passes_of_decoder
    assert calls[TIGHT] > 5 * passes_of_decoder


@pytest.mark.parametrize("height", [30, 31, 33])
def test_pictures_of_any_size_are_encoded_as_untiled(height):
    autoencoder = stable_diffusion_3()
    picture = torch.rand(1, 3, height, 43)
    result = seamless.encode(autoencoder, picture, budget=TIGHT)
    assert (result - untiled(autoencoder, "encode", picture)).abs().max() < 1e-4


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize(("wrap", "sides"), [("x", [3]), ("y", [2]), ("both", [2, 3])], ids=["x", "y", "both"])
def test_a_wrapped_canvas_continues_across_its_borders(direction, wrap, sides):
    """The middle of three copies side by side has no border there: the steps to the next copy are what is wanted."""
    autoencoder, function = stable_diffusion(), getattr(seamless, direction)
    canvas = canvas_for(autoencoder, direction, (20, 24))
    found = seamless.wrapped(function, wrap, autoencoder, canvas, budget=ROOMY)
    height, width = found.shape[2:]
    down, right = 3 if 2 in sides else 1, 3 if 3 in sides else 1
    copies = function(autoencoder, canvas.repeat(1, 1, down, right), budget=ROOMY)
    middle = copies.roll((-height, -width), (2, 3))[..., :height, :width]
    for side in sides:
        wanted, across = (step_across(image, side) for image in (middle, found))
        assert across == pytest.approx(wanted, rel=0.05)


def step_across(image, side):
    """The step from one border to the opposite one, over the mean of all steps inside."""
    steps = (image - image.roll(1, side)).abs().mean([0, 1, 5 - side])
    return float(steps[0] / steps[1:].mean())


def test_nothing_wraps_unless_it_is_asked_for():
    autoencoder = stable_diffusion()
    canvas = canvas_for(autoencoder, "decode", (8, 9))
    found = seamless.wrapped(seamless.decode, "none", autoencoder, canvas, budget=ROOMY)
    assert torch.equal(found, seamless.decode(autoencoder, canvas, budget=ROOMY))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("budget", [ROOMY, TIGHT], ids=["roomy", "tight"])
@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_half_precision_is_as_near_to_the_exact_result_as_untiled_half_precision(direction, budget, dtype):
    """Two ways of rounding every map to 8 bits differ by as much as either from the exact result: about 50 dB here."""
    half = stable_diffusion_3().to(dtype)
    exact = copy.deepcopy(half).float()
    canvas = canvas_for(exact, direction, (16, 12)).to(dtype).float()
    expected = untiled(exact, direction, canvas)
    result = getattr(seamless, direction)(half, canvas, budget=budget)
    assert result.dtype == torch.float32
    own, others = (
        (r.float() - expected).square().mean().sqrt() for r in (result, untiled(half, direction, canvas.to(dtype)))
    )
    assert own < 1.1 * others


def test_the_result_has_the_precision_of_what_came_in():
    autoencoder = stable_diffusion()
    latent = canvas_for(autoencoder, "decode", (5, 7))
    result = seamless.decode(autoencoder, latent.double(), budget=ROOMY, dtype=torch.float32)
    assert result.dtype == torch.float64
    assert (result - untiled(autoencoder, "decode", latent)).abs().max() < 1e-4


def test_encoding_is_deterministic_and_does_not_depend_on_the_batch():
    autoencoder = stable_diffusion()
    pictures = canvas_for(autoencoder, "encode", (9, 7), batch=3)
    together = seamless.encode(autoencoder, pictures, budget=TIGHT)
    alone = [seamless.encode(autoencoder, picture, budget=TIGHT) for picture in pictures.split(1)]
    assert torch.equal(together, torch.cat(alone))


@LONG
@given(st.integers(1, 3000), st.integers(1, 400), st.sampled_from([1, 2]))
def test_bands_cover_all_rows_once(height, rows, step):
    height *= step
    bands = list(passes.even_bands(height, rows, step))
    assert [top for top, _ in bands] == [0, *[bottom for _, bottom in bands[:-1]]]
    assert bands[-1][1] == height
    sizes = [bottom - top for top, bottom in bands]
    assert max(sizes) <= max(rows, step)
    assert len(bands) == -(-height // (max(rows, step) // step * step))
    assert len(set(sizes[:-1])) <= 1
    assert all(top % step == 0 for top, _ in bands)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 8), st.sampled_from(["convolution", "up", "down"]))
def test_a_pass_in_bands_of_any_height_equals_the_layer(height, width, rows, kind):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=0 if kind == "down" else 1, stride=2 if kind == "down" else 1)
    layer = {"convolution": layers.Convolution, "up": layers.Upsample, "down": layers.Downsample}[kind](conv)
    height, width = (2 * height, 2 * width) if kind == "down" else (height, width)
    picture = torch.randn(1, 4, height, width)
    widened = {"up": lambda: convolve.doubled(picture), "down": lambda: nn.functional.pad(picture, (0, 1, 0, 1))}
    with torch.no_grad():
        expected = conv(widened.get(kind, lambda: picture)())
        stage = passes.Stage(layer, height, width)
        budget = (rows + 2) * stage.elements_per_row * 4
        store = maps.Store(torch.device("cpu"), torch.float32, budget, budget)
        result = torch.empty_like(expected)
        target = maps.CanvasMap(result, store.device, store.dtype)
        source = maps.CanvasMap(picture, store.device, store.dtype)
        heights = []
        run = passes.BandedForward([stage], store, heights.append)
        run(source, target)
    assert max(heights) <= max(rows, 2 if kind == "up" else 1)
    assert (result - expected).abs().max() < 1e-5


@pytest.mark.parametrize("offset", [0, 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_statistics_of_bands_are_those_of_the_map(dtype, offset):
    """Also if the mean is many deviations from zero, and with the formula for devices other than CPU and CUDA."""
    torch.manual_seed(0)
    group_norm = stirred(nn.GroupNorm(4, 16))
    whole = (torch.randn(1, 16, 37, 50) + offset * torch.randn(1, 16, 1, 1)).to(dtype)
    expected = nn.functional.group_norm(whole.double(), 4, group_norm.weight.double(), group_norm.bias.double())
    seen = norm.WholeNorm(group_norm)
    for band in whole.contiguous(memory_format=torch.channels_last).split([1, 20, 7, 9], dim=2):
        seen.measure(band)
    result = seen.apply(whole)
    assert result.dtype == dtype
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    assert (result - expected).abs().max() < tolerance
    elsewhere = norm.normalized(whole, *seen.parameters, eps=group_norm.eps)
    assert (elsewhere - expected).abs().max() < tolerance
    fast, precise = norm.group_moments(whole, 4), norm.precise_moments(whole, 4)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(fast, precise, strict=True))


def test_weights_that_a_host_casts_are_read_off_an_answer():
    class Casting(nn.GroupNorm):
        comfy_cast_weights = True

        def forward(self, x):
            weight, bias = (2 * parameter.to(x.dtype) for parameter in (self.weight, self.bias))
            return nn.functional.group_norm(x, self.num_groups, weight, bias, self.eps)

    torch.manual_seed(0)
    casting = stirred(Casting(4, 16, eps=1e-6)).half()
    weight, bias = norm.affine(casting, torch.empty(1, 16, 1, 1, dtype=torch.bfloat16))
    assert torch.allclose(weight, 2 * casting.weight.float(), atol=1e-6)
    assert torch.allclose(bias, 2 * casting.bias.float(), atol=1e-6)


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_over_keys_in_blocks_equals_attention_over_all(heads):
    torch.manual_seed(0)
    store = maps.Store(torch.device("cpu"), torch.float32, 40_000, 40_000)
    conv = nn.Conv2d(8, 8, 3, padding=1)
    run = passes.BandedForward([passes.Stage(layers.Convolution(conv), 15, 11)], store, lambda _: None)
    query, key, value = (torch.randn(1, 8, 15, 11) * 3 for _ in range(3))
    spilled = []
    for content in (key, value):
        spilled.append(store.new(15, 11, 8))
        spilled[-1].write(0, content)
    asked = convolve.positions(query[:, :, 4:9], heads)
    expected = nn.functional.scaled_dot_product_attention(
        asked, convolve.positions(key, heads), convolve.positions(value, heads)
    )
    assert isinstance(spilled[0], maps.FileMap)
    assert (run._attend_in_blocks(asked, *([each] for each in spilled), heads) - expected).abs().max() < 1e-5
    assert (run._attend_whole(asked, *([each] for each in spilled), heads) - expected).abs().max() < 1e-5
    store.close()


def test_maps_beyond_the_budget_are_in_files_without_a_name(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    autoencoder = stable_diffusion()
    spilled = []

    def look(*_):
        spilled.append(any(type(thing) is maps.FileMap for thing in gc.get_objects()))
        assert not list(tmp_path.iterdir())

    seamless.decode(autoencoder, canvas_for(autoencoder, "decode", (12, 9)), budget=TIGHT, progress=look)
    assert any(spilled)


def test_maps_go_to_the_chosen_folder_which_may_not_exist_yet(monkeypatch, tmp_path):
    folders, chosen, make = [], tmp_path / "out" / "deep", tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: folders.append(options["dir"]) or make(**options))
    autoencoder = stable_diffusion()
    seamless.decode(autoencoder, canvas_for(autoencoder, "decode", (12, 9)), budget=TIGHT, spill=chosen)
    assert set(folders) == {chosen} and not list(chosen.iterdir())


KILLED = """
import sys, torch
from pathlib import Path
from onestep_sr.sr_models.codecs.seamless.maps import FileMap
made = FileMap(10, 10, 4, torch.float32, Path(sys.argv[1]))
made.write(0, torch.ones(1, 4, 10, 10))
print("written", flush=True)
input()
"""


@pytest.mark.skipif(os.name == "nt", reason="signals differ")
def test_a_kill_leaves_nothing(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout.readline() == "written\n"
        process.kill()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    autoencoder = stable_diffusion()
    with pytest.raises(UserError, match=r"^A feature map of 1 MB cannot be written to .*file \(.*\): free some space"):
        latent = canvas_for(autoencoder, "decode", (12, 9))
        seamless.decode(autoencoder, latent, budget=TIGHT, spill=tmp_path / "file")


@pytest.mark.parametrize("budget", [ROOMY, TIGHT], ids=["roomy", "tight"])
def test_what_progress_raises_ends_the_run_and_frees_its_maps(budget):
    autoencoder = stable_diffusion()
    latent = canvas_for(autoencoder, "decode", (20, 16))

    def cancel(done, total):
        if done > total / 2:
            raise InterruptedError("cancelled")

    with pytest.raises(InterruptedError, match="cancelled") as caught:
        seamless.decode(autoencoder, latent, budget=budget, progress=cancel)
    # The traceback is alive, and with it every frame of the run.
    assert caught.tb is not None
    left = [thing for thing in gc.get_objects() if type(thing) in (maps.MemoryMap, maps.FileMap)]
    assert not any(hasattr(thing, "pixels") for thing in left)
    assert all(thing.file.closed for thing in left if type(thing) is maps.FileMap)


MEASURED = """
import json, sys
from pathlib import Path
import torch
from diffusers import AutoencoderKL
from onestep_sr.sr_models.codecs import seamless

def resident(line):
    return next(int(text.split()[1]) for text in open("/proc/self/status") if text.startswith(line)) / 1024

torch.set_num_threads(1)
torch.manual_seed(0)
blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
autoencoder = AutoencoderKL(block_out_channels=(16, 32, 32), norm_num_groups=8, **blocks)
run = getattr(seamless, sys.argv[1])
small, canvas = (torch.randn(1, 4, 16, 16), torch.randn(1, 4, 192, 144))
if sys.argv[1] == "encode":
    small, canvas = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 768, 576)
peaks = []
for budget in (32, 512):
    run(autoencoder, small, budget=budget * 2**20)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run(autoencoder, canvas, budget=budget * 2**20)
    peaks.append(resident("VmHWM") - before)
print(json.dumps(peaks))
"""


# Freed memory is returned to the system immediately, so resident memory is allocated memory.
NOTHING_KEPT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_resident_memory_stays_within_the_budget(direction):
    command, environment = [sys.executable, "-c", MEASURED, direction], os.environ | NOTHING_KEPT
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    bounded, free = json.loads(done.stdout.splitlines()[-1])
    result = 768 * 576 * 3 * 4 / MEGABYTE
    assert bounded < 32 + result + 8
    assert free > 1.5 * bounded


def test_a_budget_without_room_for_one_row_is_refused_with_what_is_needed():
    autoencoder = stable_diffusion()
    latent = canvas_for(autoencoder, "decode", (20, 500))
    with pytest.raises(UserError) as caught:
        seamless.decode(autoencoder, latent, budget=2 * MEGABYTE)
    needed = int(str(caught.value).split("at least ")[1].split(" MB")[0])
    assert str(caught.value) == (
        f"A memory budget of 2 MB is too small for the VAE at this picture's width: use at least {needed} MB."
    )
    seamless.decode(autoencoder, latent[:, :, :3], budget=needed * MEGABYTE)


def test_a_full_disk_is_an_error_that_names_the_folder(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(maps.FileMap, "_transfer", full)
    autoencoder = stable_diffusion()
    with pytest.raises(UserError, match=r"^A feature map of 1 MB cannot be written to .* \(No space left on device\):"):
        seamless.decode(autoencoder, canvas_for(autoencoder, "decode", (12, 9)), budget=TIGHT)


@pytest.mark.parametrize(
    ("canvas", "message"),
    [
        (torch.zeros(1, 16, 8, 8), "The VAE expects 4 channels, but the input has the shape (1, 16, 8, 8)"),
        (torch.zeros(4, 8, 8), "The VAE expects 4 channels, but the input has the shape (4, 8, 8)"),
    ],
)
def test_a_latent_that_does_not_fit_is_refused(canvas, message):
    with pytest.raises(UserError) as caught:
        seamless.decode(stable_diffusion(), canvas, budget=ROOMY)
    assert str(caught.value).startswith(message)


def test_a_picture_smaller_than_a_latent_pixel_is_refused():
    with pytest.raises(UserError, match=r"^A picture of 9x3 pixels is too small for the VAE: enlarge it first\.$"):
        seamless.encode(stable_diffusion(), torch.zeros(1, 3, 3, 9), budget=ROOMY)


def other_activation():
    return kl(act_fn="gelu")


def temporal():
    down = ("DownEncoderBlock2D",) * 2
    return AutoencoderKLTemporalDecoder(block_out_channels=(32, 32), down_block_types=down, layers_per_block=1)


def with_batch_norm():
    autoencoder = kl()
    autoencoder.bn = nn.BatchNorm2d(16, affine=False)
    return autoencoder


def with_tanh():
    autoencoder = vq()
    autoencoder.decoder.tanh_out = True
    return autoencoder


def with_conv3d():
    autoencoder = vq()
    autoencoder.decoder.conv_out = nn.Conv3d(32, 3, 3, padding=1)
    return autoencoder


def ltx_video_with_a_timestep():
    settings = {"block_out_channels": (32, 32, 32, 32), "decoder_block_out_channels": (32, 32, 32)}
    return AutoencoderKLLTXVideo(**settings, latent_channels=4, timestep_conditioning=True)


def hunyuan_image_refiner():
    settings = {"block_out_channels": (32, 32), "layers_per_block": 1, "latent_channels": 4}
    return AutoencoderKLHunyuanImageRefiner(**settings, spatial_compression_ratio=2, temporal_compression_ratio=1)


OTHERS = [other_activation, temporal, with_batch_norm, with_tanh, with_conv3d, *TINY_OTHERS]
OTHERS += [ltx_video_with_a_timestep, hunyuan_image_refiner]
REFUSED = {
    temporal: "{} cannot run without seams, because its decoder mixes neighbouring frames",
    ltx_video_with_a_timestep: "{} cannot run without seams, because its decoder also takes a timestep and noise",
    hunyuan_image_refiner: "{} cannot run without seams, because it takes every frame for the first one",
}


@pytest.mark.parametrize("make", [*OTHERS, lambda: nn.Linear(3, 3)], ids=lambda make: make.__name__)
def test_other_autoencoders_are_refused_in_a_sentence(make):
    autoencoder = make()
    assert not seamless.supports(autoencoder)
    with pytest.raises(UserError) as caught:
        seamless.decode(autoencoder, torch.zeros(1, 4, 8, 8), budget=ROOMY)
    why = REFUSED.get(make, "{} has layers that cannot run without seams").format(type(autoencoder).__name__)
    assert str(caught.value) == (
        f"{why}: use stock tiling for it (supported are VQ-f4 and the VAEs of Stable Diffusion 1.5, SDXL, SD3, Flux, "
        "Flux.2, Qwen-Image, Wan 2.1, Wan 2.2, Hunyuan Image 2.1, HunyuanVideo 1.0 and 1.5, LTX-Video 0.9.0, LTX-2 and "
        "TAESD)."
    )


def test_adapters_around_modules_take_part():
    from peft import LoraConfig

    autoencoder = stable_diffusion()
    torch.manual_seed(3)
    adapted = ["conv_in", "conv1", "conv2", "conv_shortcut", "conv_out", "to_q", "to_k", "to_v", "to_out.0"]
    plain = untiled(autoencoder, "encode", canvas_for(autoencoder, "encode", (9, 7)))
    autoencoder.add_adapter(LoraConfig(r=4, target_modules=adapted, init_lora_weights=False))
    autoencoder.requires_grad_(False).eval()
    picture = canvas_for(autoencoder, "encode", (9, 7))
    expected = untiled(autoencoder, "encode", picture)
    assert (expected - plain).abs().max() > 0.01
    assert (seamless.encode(autoencoder, picture, budget=TIGHT) - expected).abs().max() < 1e-4


def test_changes_between_two_runs_are_seen():
    """Weights and modules that were replaced, and borders that other packs make circular."""
    autoencoder = stable_diffusion()
    latent = canvas_for(autoencoder, "decode", (9, 7))

    def difference():
        return (seamless.decode(autoencoder, latent, budget=TIGHT) - untiled(autoencoder, "decode", latent)).abs().max()

    first = seamless.decode(autoencoder, latent, budget=TIGHT)
    decoder, block = autoencoder.decoder, autoencoder.decoder.mid_block.resnets[0]
    decoder.conv_in.weight = nn.Parameter(1.5 * decoder.conv_in.weight, requires_grad=False)
    block.conv1 = copy.deepcopy(block.conv2)
    assert difference() < 1e-4
    assert (seamless.decode(autoencoder, latent, budget=TIGHT) - first).abs().max() > 0.01
    block.conv1.padding_mode = "circular"
    assert not seamless.supports(autoencoder)
    block.conv1 = nn.Sequential(block.conv2)
    assert not seamless.supports(autoencoder)


def test_an_autoencoder_is_free_after_its_runs():
    autoencoder = stable_diffusion()
    seamless.decode(autoencoder, canvas_for(autoencoder, "decode", (3, 2)), budget=TIGHT)
    left = weakref.ref(autoencoder), weakref.ref(autoencoder.decoder.conv_in)
    del autoencoder
    gc.collect()
    assert [each() for each in left] == [None, None]


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.parametrize("folder", installed_hosts(), ids=lambda folder: folder.name)
def test_equals_the_untiled_run_of_comfyui_with_patches_and_casts(folder, tmp_path):
    (tmp_path / "onestep_sr").symlink_to(Path(ROOT), target_is_directory=True)
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [interpreter(folder), HOST_SCRIPTS / "seamless_in_comfyui.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    names = ["4 channels", "16 channels", "Flux.2", "Wan, 1 frames", "Wan, 4 frames", "patched", "cast"]
    names += ["Wan 2.2, 1 frames", "Wan 2.2, 5 frames", "Hunyuan Image"]
    kinds = ("HunyuanVideo", "HunyuanVideo 1.5", "LTX-Video", "LTX-2")
    names += [f"{kind}, {frames} frames" for kind in kinds for frames in (1, 3, 5)]
    for name in [*names, "TAESD, 4 channels", "TAESD, 16 channels"]:
        assert max(results[name]) < 1e-4, results
    assert results["patched changes"] > 0.01
    assert results["supported"] == []
