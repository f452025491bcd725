"""The denoiser for plain torch modules."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .model import Condition, Result
from .step import Network

ACCELERATOR_TILES = 4  # at once; reduced if memory runs out


class NetworkDenoiser:
    """Runs a torch module as a denoiser, on the module's device and in its precision."""

    def __init__(self, network: nn.Module):
        self.network = network

    def run(self, work: Callable[[Network], Result], shape: tuple[int, ...], condition: Condition = None) -> Result:
        return work(self)

    def tiles_at_once(self, shape: tuple[int, ...]) -> int:
        """1 on a CPU, where more are not faster; else ACCELERATOR_TILES, which is reduced if memory runs out."""
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
