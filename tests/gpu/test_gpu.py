"""What only a CUDA GPU can show: where tensors are, and what happens when its memory or its precision ends."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import small_sd3
import torch
from onestep_sr.sr_models.codecs import seamless
from onestep_sr.sr_models.codecs.pixel_shuffle import PixelShuffleCodec
from onestep_sr.sr_models.codecs.seamless.maps import Store
from onestep_sr.sr_models.core.memory import release_cached
from onestep_sr.sr_models.core.model import SRModel
from onestep_sr.sr_models.core.network_denoiser import NetworkDenoiser
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.process import flow_level
from onestep_sr.sr_models.core.recipe import Recipe
from onestep_sr.sr_models.core.step import OneStep
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.diffusers_host.lora import open_lora
from onestep_sr.sr_models.families.loading import load
from onestep_sr.sr_models.training.draws import Draws
from torch import Tensor, nn

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")]

CUDA = torch.device("cuda")
MIB = 2**20
LATENT = torch.randn(1, 16, 96, 88, generator=torch.Generator().manual_seed(0)).half().float()


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in TF32 would differ from the CPU's by more than rounding."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> small_sd3.SmallSD3:
    return small_sd3.write(tmp_path_factory.mktemp("sd3"), (32, 32, 64, 64))


@pytest.fixture
def little_memory() -> Iterator[int]:
    """The allocator may have 1 GiB."""
    release_cached()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1024 * MIB / whole)
    yield 1024 * MIB
    torch.cuda.set_per_process_memory_fraction(1.0)
    release_cached()


def allocated() -> int:
    gc.collect()
    return torch.cuda.memory_allocated()


def picture(height: int, width: int) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_the_bundled_model_gives_the_cpus_result() -> None:
    models = [load(dtype=torch.float32).to(device).model for device in (CUDA, torch.device("cpu"))]
    results = [upscale(model, picture(40, 56)) for model in models]
    assert results[0].device.type == "cpu"
    assert (results[0] - results[1]).abs().max() < 1e-3


def test_tsd_sr_gives_the_cpus_result_and_offload_leaves_nothing(sd3: small_sd3.SmallSD3) -> None:
    def result(device: torch.device, offload: bool = False) -> Tensor:
        files = {"embeddings": sd3.embeddings, "dtype": torch.float32}
        model = open_lora(sd3.folder, sd3.lora, device=device, offload=offload, **files).model
        return upscale(model, picture(64, 96), UpscaleOptions(scale=2))

    expected = result(torch.device("cpu"))
    assert (result(CUDA) - expected).abs().max() < 2e-3
    before = allocated()
    torch.cuda.reset_peak_memory_stats()
    assert (result(CUDA, offload=True) - expected).abs().max() < 2e-3
    assert torch.cuda.max_memory_allocated() > before + MIB, "the work was on the GPU"
    assert allocated() - before < MIB


def test_values_that_overflow_in_half_precision_are_computed_again() -> None:
    """The network's middle has values around 1e6; its result does not."""
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Conv2d(48, 48, 1, bias=False) for _ in range(4))).requires_grad_(False)
    for layer, scale in zip(network, (3e3, 3e3, 1e-3, 1e-3), strict=True):
        layer.weight.mul_(scale)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    recipe = Recipe("test", "Test model", "", OneStep(1000.0, level=flow_level(1000.0)), tile=32, overlap=8, multiple=8)

    def result(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, list[str]]:
        notices: list[str] = []
        made = Middle(network).to(device, dtype)
        model = SRModel(recipe, NetworkDenoiser(made), PixelShuffleCodec(4))
        return upscale(model, picture(16, 24), notice=notices.append), notices

    expected, none = result(torch.device("cpu"), torch.float32)
    found, notices = result(CUDA, torch.float16)
    assert not none and any("overflowed" in notice for notice in notices)
    assert (found - expected).abs().max() < 1e-2


class Middle(nn.Module):
    def __init__(self, layers: nn.Sequential):
        super().__init__()
        self.layers = layers

    def forward(self, latent: Tensor, condition: Tensor, timestep: Tensor) -> Tensor:
        return self.layers(latent.to(self.layers[0].weight.dtype))


def test_tiles_become_smaller_where_memory_ends(little_memory: int) -> None:
    """One tile of 4096 px does not fit into the limit; the result is that of smaller tiles, whichever size fits."""
    model = load(dtype=torch.float32).to(CUDA).model
    notices: list[str] = []
    torch.cuda.reset_peak_memory_stats()
    found = upscale(model, picture(1024, 1024), UpscaleOptions(tile=4096), notice=notices.append)
    assert torch.cuda.max_memory_allocated() <= little_memory
    assert any("Memory ran out" in notice for notice in notices)
    smaller = (upscale(model, picture(1024, 1024), UpscaleOptions(tile=tile)) for tile in (2048, 1024, 512))
    assert min((found - expected).abs().max() for expected in smaller) < 1e-3


@pytest.mark.parametrize("budget", [64 * MIB, 4096 * MIB], ids=["pinned", "on the device"])
def test_the_seamless_vae_is_exact(sd3: small_sd3.SmallSD3, budget: int) -> None:
    vae = autoencoder(sd3)
    found = seamless.decode(vae, LATENT.to(CUDA), budget=budget)
    assert (found - vae.decode(LATENT.to(CUDA)).sample).abs().max() < 1e-4


@pytest.mark.parametrize("budget", [64 * MIB, 4096 * MIB], ids=["pinned", "on the device"])
def test_the_seamless_vae_stays_within_its_budget(sd3: small_sd3.SmallSD3, budget: int) -> None:
    """In half precision, as on GPUs: in exact float32, cuDNN may choose algorithms that need gigabytes themselves."""
    vae, latent = autoencoder(sd3).half(), LATENT.to(CUDA)
    # Libraries keep memory of their own from the first use on.
    seamless.decode(vae, latent[:, :, :8, :8], budget=budget)
    before = allocated()
    torch.cuda.reset_peak_memory_stats()
    found = seamless.decode(vae, latent, budget=budget)
    assert torch.cuda.max_memory_allocated() - before - found.nbytes <= budget
    halves = vae.decode(latent.half()).sample
    exact = vae.float().decode(latent).sample
    own, others = ((result.float() - exact).square().mean() for result in (found, halves))
    assert own < 1.2 * others, "no more rounding than without bands"


def autoencoder(sd3: small_sd3.SmallSD3) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(sd3.folder / "vae").eval().requires_grad_(False).to(CUDA)


def test_maps_beyond_the_budget_are_pinned() -> None:
    store = Store(CUDA, torch.float16, budget=MIB, reserve=0)
    here, there = store.new(64, 64, 8), store.new(1024, 1024, 8)
    assert here.pixels.is_cuda and there.pixels.is_pinned()  # pyright: ignore[reportAttributeAccessIssue]
    band = torch.rand(1, 8, 16, 1024, device=CUDA, dtype=torch.float16)
    there.write(32, band)
    assert torch.equal(there.read(32, 48), band)


def test_random_numbers_do_not_depend_on_the_device() -> None:
    drawn = [Draws(3, [1, 2], device).normal(4).cpu() for device in ("cuda", "cpu")]
    assert torch.equal(*drawn)
