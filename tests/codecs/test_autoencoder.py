"""An autoencoder as a codec."""

from pathlib import Path

import torch
from onestep_sr.sr_models.codecs import autoencoder as codecs
from onestep_sr.sr_models.codecs.autoencoder import AutoencoderCodec
from onestep_sr.sr_models.networks.vq_autoencoder import VQAutoencoder, VQConfig
from torch import nn


def test_an_autoencoder_as_a_codec_takes_and_gives_pictures_between_0_and_1():
    autoencoder = VQAutoencoder(VQConfig(channels=32, multipliers=(1, 2), codes=64)).eval().requires_grad_(False)
    codec = AutoencoderCodec(autoencoder, 2, 3, scaling=1.5)
    image = torch.rand(2, 3, 24, 20, generator=torch.Generator().manual_seed(0))
    latent = codec.encode(image)
    assert torch.allclose(latent, 1.5 * autoencoder.encode(image * 2 - 1), atol=1e-5)
    assert torch.allclose(codec.decode(latent), autoencoder.decode(latent / 1.5) / 2 + 0.5, atol=1e-5)
    assert not latent.requires_grad


def test_a_codec_runs_its_autoencoder_within_its_budget(monkeypatch):
    budgets = []
    monkeypatch.setattr(codecs, "free_budget", lambda device: 7)
    for function in ("encode", "decode"):
        fake = lambda autoencoder, canvas, budget, spill, progress: budgets.append((budget, spill)) or canvas  # noqa: E731
        monkeypatch.setattr(codecs.seamless, function, fake)
    for budget in (5, None):
        codec = AutoencoderCodec(nn.Linear(1, 1), 2, 3, budget=budget, spill=Path("out"))
        codec.decode(codec.encode(torch.zeros(1, 3, 8, 8)))
    assert budgets == [(limit, Path("out")) for limit in (5, 5, 7, 7)]
