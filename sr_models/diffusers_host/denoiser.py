"""A diffusers network with its prompt as the denoiser of an SR model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.prompt_embeddings import PromptEmbeddings
from ..core.model import Condition, Result
from ..core.network_denoiser import ACCELERATOR_TILES
from ..core.step import Network
from .offload import Placement

Predict = Callable[[Any, Tensor, Tensor, Tensor, Tensor], Tensor]


class PromptedDenoiser:
    """A diffusers network with its prompt, as a denoiser.

    predict: network, latent (B, c, h, w) float32 on its device, timestep (B,), prompt and pooled prompt -> prediction.
    """

    def __init__(self, network: Any, predict: Predict, condition: PromptEmbeddings, placement: Placement):
        self.network, self.predict, self.placement = network, predict, placement
        self.prompt = condition.prompt.to(placement.device, network.dtype)
        self.pooled = condition.pooled.to(placement.device, network.dtype)

    def run(self, work: Callable[[Network], Result], shape: tuple[int, ...], condition: Condition = None) -> Result:
        with self.placement.on_device(self.network):
            return work(self._run)

    def tiles_at_once(self, shape: tuple[int, ...]) -> int:
        return 1 if self.placement.device.type == "cpu" else ACCELERATOR_TILES

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    def in_float32(self) -> PromptedDenoiser:
        exact, condition = copy.deepcopy(self.network).float(), PromptEmbeddings(self.prompt, self.pooled)
        return PromptedDenoiser(exact, self.predict, condition, self.placement)

    @torch.no_grad()
    def _run(self, latent: Tensor, lr: Tensor, timestep: Tensor) -> Tensor:
        device, count = self.placement.device, len(latent)
        prompt, pooled = self.prompt.expand(count, -1, -1), self.pooled.expand(count, -1)
        prediction = self.predict(self.network, latent.to(device), timestep.to(device), prompt, pooled)
        return prediction.to(latent.device, torch.float32)
