"""A torch module as a denoiser."""

import torch
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
