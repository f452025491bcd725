"""Videos, and pictures as videos of one frame, equal the untiled ones for every network that runs over frames."""

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo15, AutoencoderKLLTX2Video, AutoencoderKLLTXVideo
from null_device import device_memory
from onestep_sr.sr_models.codecs import seamless
from onestep_sr.sr_models.codecs.seamless import maps
from onestep_sr.sr_models.errors import UserError
from race_detector import RaceDetector
from small_autoencoders import VIDEO_KINDS, video_network

pytestmark = pytest.mark.usefixtures("one_thread")

ROOMY = 2**30
GPU_BUDGET, SMALL_TENSORS = 2**20, 2**17
CLAMPED = ("AutoencoderKLQwenImage", "AutoencoderKLWan", "wan_2_2")


def bands(function, autoencoder, canvas):
    """The result in as few bands as possible and in as many, which are equal, and no progress is missing."""
    roomy, whole = run(function, autoencoder, canvas, ROOMY)
    for exponent in range(10, 20):
        try:
            tight, parts = run(function, autoencoder, canvas, 2**exponent)
        except UserError:
            continue
        assert whole < parts
        assert (roomy - tight).abs().max() < 1e-4
        return tight
    raise AssertionError


def run(function, autoencoder, canvas, budget):
    seen = []
    result = function(autoencoder, canvas, budget=budget, progress=lambda *at: seen.append(at))
    assert seen[-1][0] == seen[-1][1]
    return result, len(seen)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("kind", VIDEO_KINDS)
def test_videos_equal_the_untiled_ones(kind, frames):
    autoencoder, (_, size, _, _) = video_network(kind), VIDEO_KINDS[kind]
    assert seamless.supports(autoencoder)
    latent = torch.randn(1, 4, frames, *size, generator=torch.Generator().manual_seed(2))
    decoded, expected = bands(seamless.decode, autoencoder, latent), autoencoder.decode(latent).sample
    decoded = decoded.clamp(-1, 1) if kind in CLAMPED else decoded
    assert decoded.shape == expected.shape
    assert expected.std() > 0.05
    assert (decoded - expected).abs().max() < 1e-4


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("kind", VIDEO_KINDS)
def test_encoded_videos_equal_the_untiled_ones(kind, frames):
    """Also if the last frames fill none of the latent's, except where norms see them."""
    autoencoder, (_, _, size, time) = video_network(kind), VIDEO_KINDS[kind]
    count = time * (frames - 1) + 1 + (time - 1) * (kind in CLAMPED)
    video = torch.rand(1, 3, count, *size, generator=torch.Generator().manual_seed(3)) * 2 - 1
    encoded, expected = bands(seamless.encode, autoencoder, video), autoencoder.encode(video).latent_dist.mode()
    assert encoded.shape == expected.shape
    assert encoded.shape[2] == frames
    assert (encoded - expected).abs().max() < 1e-4


@pytest.mark.parametrize("kind", VIDEO_KINDS)
def test_a_picture_is_a_video_of_one_frame(kind):
    autoencoder, (_, latent_size, size, _) = video_network(kind), VIDEO_KINDS[kind]
    latent, picture = torch.randn(1, 4, *latent_size), torch.rand(1, 3, *size)
    for function, canvas in ((seamless.decode, latent), (seamless.encode, picture)):
        alone, video = (function(autoencoder, one, budget=ROOMY) for one in (canvas, canvas[:, :, None]))
        assert torch.equal(alone, video[:, :, 0])


def test_frames_that_fill_no_frame_of_the_latent_are_left_out():
    """Which would otherwise take part in the norms."""
    autoencoder, video = video_network("hunyuan_video"), torch.rand(1, 3, 8, 37, 22)
    encoded = seamless.encode(autoencoder, video, budget=ROOMY)
    assert torch.equal(encoded, seamless.encode(autoencoder, video[:, :, :5], budget=ROOMY))


def test_rows_and_columns_that_fill_no_patch_are_left_out():
    autoencoder, picture = video_network("wan_2_2"), torch.rand(1, 3, 45, 39)
    encoded = seamless.encode(autoencoder, picture, budget=ROOMY)
    assert encoded.shape == (1, 4, 5, 4)
    assert torch.equal(encoded, seamless.encode(autoencoder, picture[:, :, :44, :38], budget=ROOMY))


def test_a_latent_without_a_row_to_reflect_is_refused():
    with pytest.raises(UserError, match=r"^A picture of 4x1 pixels is too small for the VAE: enlarge it first\.$"):
        seamless.decode(video_network("ltx_2"), torch.zeros(1, 4, 1, 4), budget=ROOMY)


@pytest.mark.parametrize("full", [AutoencoderKLLTXVideo, AutoencoderKLLTX2Video, AutoencoderKLHunyuanVideo15])
def test_networks_of_full_width_are_recognised(full):
    with torch.device("meta"):
        assert seamless.supports(full())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("kind", VIDEO_KINDS)
def test_everything_runs_on_the_device_of_the_network(kind, dtype):
    """A device without memory stands for any but the CPU: an operation on tensors of both would raise an error."""
    make, latent_size, size, time = VIDEO_KINDS[kind]
    with torch.device("meta"):
        autoencoder = make().requires_grad_(False).to(dtype)
        latent, video = torch.empty(1, 4, 3, *latent_size), torch.empty(1, 3, 2 * time + 1, *size)
    for function, canvas in ((seamless.decode, latent), (seamless.encode, video)):
        result = function(autoencoder, canvas, budget=ROOMY)
        assert result.is_meta
        assert result.dtype == torch.float32


@pytest.mark.parametrize("streams", [False, True], ids=["one_stream", "streams"])
@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("kind", VIDEO_KINDS)
def test_a_gpu_would_hold_no_more_than_the_budget(kind, direction, streams, monkeypatch):
    """By the shapes of all tensors; the budget is small enough that most maps are in main memory."""
    if streams:
        RaceDetector().install(monkeypatch)
        monkeypatch.setattr(maps, "WITH_STREAMS", ("meta",))
    make, latent_size, size, time = VIDEO_KINDS[kind]
    with torch.device("meta"):
        autoencoder = make().requires_grad_(False).half()
    sides, frames, channels = (latent_size, 2, 4) if direction == "decode" else (size, time + 1, 3)
    canvas = torch.zeros(1, channels, frames, *(4 * side for side in sides))
    with device_memory() as memory:
        getattr(seamless, direction)(autoencoder, canvas, budget=GPU_BUDGET)
    assert GPU_BUDGET // 2 < memory.peak < GPU_BUDGET + SMALL_TENSORS
