"""What an SR model is made of: a recipe, a denoiser and a codec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .recipe import Recipe
from .step import Network


class Denoiser(Protocol):
    """A network, and how to have it ready: on its device, patched, with the prompt that it is conditioned on."""

    def run(self, work: Callable[[Network], Tensor], shape: tuple[int, ...]) -> Tensor:
        """work(network). `shape` is the largest latent (B, c, h, w) that one evaluation will get.

        network: latent (B, c, h, w), condition (B, 3, h', w') and timestep (B,) -> prediction (B, c, h, w);
        float32 in and out, on the caller's device. The condition is the LR picture in [-1, 1] on the
        latent's window of the canvas.
        """
        ...


class Codec(Protocol):
    """Picture <-> latent, float32 in and out, on the caller's device.

    `factor` is picture side over latent side, `latent_channels` the c of (B, c, h, w).
    """

    @property
    def factor(self) -> int: ...
    @property
    def latent_channels(self) -> int: ...
    def encode(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], sides multiples of `factor` -> (B, c, H/factor, W/factor)."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, 3, h factor, w factor), about [0, 1], not clamped."""
        ...

    def preview(self, latent: Tensor) -> Tensor:
        """A cheap rough picture on the latent grid: (B, 3, h, w) in [0, 1]."""
        ...


@dataclass(frozen=True)
class SRModel:
    """Everything that turns a small picture into a large one; see `upscale`."""

    recipe: Recipe
    denoiser: Denoiser
    codec: Codec


class NetworkDenoiser:
    """A torch module as a denoiser. It runs where the module is, in the module's precision."""

    def __init__(self, network: nn.Module):
        self.network = network

    def run(self, work: Callable[[Network], Tensor], shape: tuple[int, ...]) -> Tensor:
        return work(self)

    @torch.no_grad()
    def __call__(self, latent: Tensor, condition: Tensor, timestep: Tensor) -> Tensor:
        device = next(self.network.parameters()).device
        result = self.network(latent.to(device), condition.to(device), timestep.to(device))
        return result.to(latent.device, torch.float32)


class AutoencoderCodec:
    """An autoencoder with `encode` and `decode` on pictures in [-1, 1], as a codec."""

    def __init__(self, autoencoder: nn.Module, factor: int, latent_channels: int):
        self.autoencoder, self.factor, self.latent_channels = autoencoder, factor, latent_channels

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        return self._run(self.autoencoder.encode, image * 2 - 1)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        return self._run(self.autoencoder.decode, latent) / 2 + 0.5

    def preview(self, latent: Tensor) -> Tensor:
        """The first three channels, which in VQ-f4 look like a faded picture."""
        return (latent[:, :3] / 2 + 0.5).clamp(0, 1)

    def _run(self, function, x: Tensor) -> Tensor:
        weight = next(self.autoencoder.parameters())
        return function(x.to(weight.device, weight.dtype)).to(x.device, torch.float32)
