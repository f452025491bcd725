"""Torch modules as the denoiser and the codec of an SR model."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from . import seamless_vae
from .memory import free_budget, within_budget
from .sr_model import Result
from .step import Network

ACCELERATOR_TILES = 4  # at once; memory that runs out corrects the guess


class NetworkDenoiser:
    """A torch module as a denoiser. It runs where the module is, in the module's precision."""

    def __init__(self, network: nn.Module):
        self.network = network

    def run(self, work: Callable[[Network], Result], shape: tuple[int, ...]) -> Result:
        return work(self)

    def tiles_at_once(self, shape: tuple[int, ...]) -> int:
        """A CPU gains nothing from several; elsewhere memory that runs out corrects the guess."""
        return 1 if next(self.network.parameters()).device.type == "cpu" else ACCELERATOR_TILES

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    def in_float32(self) -> NetworkDenoiser:
        return NetworkDenoiser(copy.deepcopy(self.network).float())

    @torch.no_grad()
    def __call__(self, latent: Tensor, condition: Tensor, timestep: Tensor) -> Tensor:
        device = next(self.network.parameters()).device
        result = self.network(latent.to(device), condition.to(device), timestep.to(device))
        return result.to(latent.device, torch.float32)


class AutoencoderCodec:
    """An AutoencoderKL or VQ-f4 as a codec, run without seams within the memory that its device has free.

    `scaling` is the denoiser's latent over the autoencoder's own. `budget` is what its feature maps may take, in
    bytes; None asks the device at each use.
    """

    is_local = False

    def __init__(
        self,
        autoencoder: nn.Module,
        factor: int,
        latent_channels: int,
        scaling: float = 1.0,
        budget: int | None = None,
    ):
        self.autoencoder, self.factor, self.latent_channels = autoencoder, factor, latent_channels
        self.scaling, self.budget = scaling, budget

    def encode(self, image: Tensor) -> Tensor:
        return self._run(seamless_vae.encode, image * 2 - 1) * self.scaling

    def decode(self, latent: Tensor) -> Tensor:
        return self._run(seamless_vae.decode, latent / self.scaling) / 2 + 0.5

    def preview(self, latent: Tensor) -> Tensor:
        """The first three channels, which in VQ-f4 look like a faded picture."""
        return (latent[:, :3] / 2 + 0.5).clamp(0, 1)

    def _run(self, function: Callable[..., Tensor], canvas: Tensor) -> Tensor:
        budget = self.budget or free_budget(next(self.autoencoder.parameters()).device)
        return within_budget(lambda budget: function(self.autoencoder, canvas.float(), budget=budget), budget)
