"""A torch module as a denoiser."""

import pytest
import torch
from onestep_sr.sr_models.core import network_denoiser
from onestep_sr.sr_models.core.network_denoiser import NetworkDenoiser
from onestep_sr.sr_models.networks.swin_unet import (
    SwinUNet,
)
from small_swin import SMALL, normal, randomised


def test_the_denoiser_runs_in_the_networks_precision_and_answers_in_float32_without_gradients():
    network = randomised(SwinUNet(SMALL)).requires_grad_(True)
    latent, condition, t = normal(1, 3, 8, 16), normal(1, 3, 8, 16, seed=1), torch.tensor([5])
    exact = NetworkDenoiser(network)(latent, condition, t)
    rough = NetworkDenoiser(network.to(torch.bfloat16))(latent, condition, t)
    assert exact.dtype == rough.dtype == torch.float32
    assert not exact.requires_grad
    assert not torch.equal(exact, rough)
    assert (exact - rough).abs().mean() < 0.05 * exact.abs().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tile_that_is_larger_than_the_free_memory_is_known(dtype, monkeypatch):
    network = randomised(SwinUNet(SMALL)).to(dtype)
    known, unknown = NetworkDenoiser(network, values_per_pixel=1000), NetworkDenoiser(network)
    one = 1000 * 8 * 16 * dtype.itemsize
    assert known.memory((1, 3, 8, 16)) == one and known.memory((3, 3, 8, 16)) == 3 * one
    for free, fitting in ((one - 1, 0), (one, 1), (9 * one, 1)):  # on a CPU never several at once
        monkeypatch.setattr(network_denoiser, "free_budget", lambda device, free=free: free)
        assert known.tiles_at_once((1, 3, 8, 16)) == fitting
        assert unknown.tiles_at_once((1, 3, 8, 16)) == 1
    assert known.in_float32().memory((1, 3, 8, 16)) == 4000 * 8 * 16
