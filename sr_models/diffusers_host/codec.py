"""The codec for diffusers' VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ..codecs.autoencoder import AutoencoderCodec
from ..core.model import Stage
from .offload import Placement


class LatentCodec(AutoencoderCodec):
    """diffusers' VAE as a codec. Latents are the posterior's mode, scaled but not shifted, as in one-step LoRAs."""

    def __init__(
        self, vae: Any, placement: Placement, scaling: float, budget: int | None = None, spill: Path | None = None
    ):
        super().__init__(vae, 8, vae.config.latent_channels, scaling, budget, spill)
        self.placement = placement

    def encode(self, image: Tensor, stage: Stage | None = None) -> Tensor:
        with self.placement.on_device(self.autoencoder):
            return super().encode(image.clamp(0, 1), stage)

    def decode(self, latent: Tensor, stage: Stage | None = None) -> Tensor:
        with self.placement.on_device(self.autoencoder):
            return super().decode(latent, stage)
