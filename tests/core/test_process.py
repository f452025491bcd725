"""Noise processes, compared with diffusers' schedulers."""

from __future__ import annotations

import torch
from onestep_sr.sr_models.core.process import Process, flow_matching, variance_preserving
from onestep_sr.sr_models.training.sd import tsd

SHAPE = (3, 2, 4, 5)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape or SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def process(kind: str) -> Process:
    if kind == "flow":
        return flow_matching(3.0)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return variance_preserving(kind, torch.cumprod(1 - betas, 0))


def test_processes_have_the_schedulers_values() -> None:
    from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

    published = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert torch.allclose(process("flow").sigma, published.sigmas, atol=1e-7)
    assert torch.allclose(process("flow").timesteps, published.timesteps, atol=1e-4)
    latent, noise, index = normal(0).float(), normal(1).float(), torch.tensor([0, 400, 999])
    for kind, name in (("epsilon", "epsilon"), ("v", "v_prediction")):
        scheduler = DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=name
        )
        base = variance_preserving(kind, scheduler.alphas_cumprod)
        t = base.timesteps[index]
        z_t = scheduler.add_noise(latent, noise, t)
        path = tsd.noised(latent, noise, tsd.at(base.path, index))
        assert torch.allclose(base.network_input(path, index), z_t, atol=1e-6)
        output = noise if kind == "epsilon" else scheduler.get_velocity(latent, noise, t)
        assert torch.allclose(base.x_0(output, z_t, index), latent, atol=1e-4)
