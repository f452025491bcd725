"""The denoiser for plain torch modules."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .memory import free_budget
from .model import Condition, Result
from .step import Network

ACCELERATOR_TILES = 4  # at once; reduced if memory runs out


class NetworkDenoiser:
    """Runs a torch module as a denoiser, on the module's device and in its precision.

    `values_per_pixel`: how many values per latent pixel exist at once during a pass; 0 if unknown.
    """

    def __init__(self, network: nn.Module, values_per_pixel: int = 0):
        self.network, self.values_per_pixel = network, values_per_pixel

    def run(self, work: Callable[[Network], Result], shape: tuple[int, ...], condition: Condition = None) -> Result:
        return work(self)

    def tiles_at_once(self, shape: tuple[int, ...]) -> int:
        """1 on a CPU, where more are not faster; else ACCELERATOR_TILES, which is reduced if memory runs out. Fewer if
        their memory is known and not free."""
        device, needed = next(self.network.parameters()).device, self.memory(shape)
        wanted = 1 if device.type == "cpu" else ACCELERATOR_TILES
        return min(wanted, free_budget(device) // needed) if needed else wanted

    def memory(self, shape: tuple[int, ...]) -> int:
        batch, _, height, width = shape
        return batch * height * width * self.values_per_pixel * self.dtype.itemsize

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    def in_float32(self) -> NetworkDenoiser:
        return NetworkDenoiser(copy.deepcopy(self.network).float(), self.values_per_pixel)

    @torch.no_grad()
    def __call__(self, latent: Tensor, lr: Tensor, timestep: Tensor) -> Tensor:
        device = next(self.network.parameters()).device
        result = self.network(latent.to(device), lr.to(device), timestep.to(device))
        return result.to(latent.device, torch.float32)
