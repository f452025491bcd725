"""A torch module as the denoiser of an SR model."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .model import Condition, Result
from .step import Network

ACCELERATOR_TILES = 4  # at once; memory that runs out corrects the guess


class NetworkDenoiser:
    """A torch module as a denoiser. It runs where the module is, in the module's precision."""

    def __init__(self, network: nn.Module):
        self.network = network

    def run(self, work: Callable[[Network], Result], shape: tuple[int, ...], condition: Condition = None) -> Result:
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
    def __call__(self, latent: Tensor, lr: Tensor, timestep: Tensor) -> Tensor:
        device = next(self.network.parameters()).device
        result = self.network(latent.to(device), lr.to(device), timestep.to(device))
        return result.to(latent.device, torch.float32)
