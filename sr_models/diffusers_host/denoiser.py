"""The denoiser for diffusers' networks, which are conditioned on encoded prompts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.prompt_embeddings import PromptEmbeddings
from ..core.model import Guided, Result
from ..core.network_denoiser import ACCELERATOR_TILES
from ..core.step import Network
from .base import Call
from .offload import Placement


class PromptedDenoiser:
    """Runs a diffusers network as a denoiser. The condition is one picture's PromptEmbeddings, or two of them as
    Guided."""

    def __init__(self, network: Any, call: Call, placement: Placement):
        self.network, self.call, self.placement = network, call, placement

    def run(
        self,
        work: Callable[[Network], Result],
        shape: tuple[int, ...],
        condition: PromptEmbeddings | Guided | None = None,
    ) -> Result:
        if condition is None:
            raise ValueError("This denoiser needs an encoded prompt: pass the result of the model's conditioner.")
        with self.placement.on_device(self.network):
            if not isinstance(condition, Guided):
                return work(self._network(condition))
            positive, negative = self._network(condition.positive), self._network(condition.negative)
            return work(lambda *inputs: condition.combined(positive(*inputs), negative(*inputs)))

    def _network(self, condition: PromptEmbeddings) -> Network:
        device, dtype = self.placement.device, self.dtype
        prompt, pooled = condition.prompt.to(device, dtype), condition.pooled.to(device, dtype)

        @torch.no_grad()
        def network(latent: Tensor, lr: Tensor, timestep: Tensor) -> Tensor:
            count = len(latent)
            each = PromptEmbeddings(prompt.expand(count, -1, -1), pooled.expand(count, -1))
            output = self.predict(latent.to(device, dtype), lr, timestep.to(device), each)
            return output.to(latent.device, torch.float32)

        return network

    def predict(self, latent: Tensor, lr: Tensor, timesteps: Tensor, condition: PromptEmbeddings) -> Tensor:
        """The raw prediction. This network does not see the LR picture."""
        return self.call(self.network, latent, timesteps, condition.prompt, condition.pooled)

    def tiles_at_once(self, shape: tuple[int, ...]) -> int:
        return 1 if self.placement.device.type == "cpu" else ACCELERATOR_TILES

    def memory(self, shape: tuple[int, ...]) -> int:
        return 0

    @property
    def dtype(self) -> torch.dtype:
        """Of the first weight: diffusers looks for hooks in all modules before, which takes long."""
        return next(self.network.parameters()).dtype

    def in_float32(self) -> PromptedDenoiser:
        return type(self)(copy.deepcopy(self.network).float(), self.call, self.placement)
