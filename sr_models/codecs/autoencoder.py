"""A codec for SR models that uses an autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from ..core.memory import SHARE, free_budget, within_budget
from ..core.model import Stage
from . import seamless


class AutoencoderCodec:
    """An AutoencoderKL or VQ-f4 as a codec, run seamlessly within the free memory of its device.

    `scaling` is the ratio of the denoiser's latent to the autoencoder's own. `budget` limits the memory of feature
    maps, in bytes; None asks the device for its free memory at each use. `spill` is the folder for what does not fit
    into the memory of a CPU, as in `seamless.encode`.
    """

    is_local = False

    def __init__(
        self,
        autoencoder: nn.Module,
        factor: int,
        latent_channels: int,
        scaling: float = 1.0,
        budget: int | None = None,
        spill: Path | None = None,
    ):
        self.autoencoder, self.factor, self.latent_channels = autoencoder, factor, latent_channels
        self.scaling, self.budget, self.spill = scaling, budget, spill

    def encode(self, image: Tensor, stage: Stage | None = None) -> Tensor:
        return self._run(seamless.encode, image * 2 - 1, stage) * self.scaling

    def decode(self, latent: Tensor, stage: Stage | None = None) -> Tensor:
        return self._run(seamless.decode, latent / self.scaling, stage) / 2 + 0.5

    def preview(self, latent: Tensor) -> Tensor:
        """The first three channels, which in VQ-f4 look like a pale version of the picture."""
        return (latent[:, :3] / 2 + 0.5).clamp(0, 1)

    def memory(self, height: int, width: int) -> int:
        needed = int(self._workspace(height, width) / SHARE)
        return min(needed, self.budget) if self.budget else needed

    def _workspace(self, height: int, width: int) -> int:
        return seamless.workspace(self.autoencoder, height, width)

    def _run(self, function: Callable[..., Tensor], canvas: Tensor, stage: Stage | None) -> Tensor:
        budget = self.budget or free_budget(next(self.autoencoder.parameters()).device)
        run = partial(function, self.autoencoder, canvas.float(), progress=stage, spill=self.spill)
        return within_budget(lambda budget: run(budget=budget), budget)


class DecoderCodec(AutoencoderCodec):
    """A decoder without an encoder, for networks that give its features and look at the LR picture themselves."""

    def encode(self, image: Tensor, stage: Stage | None = None) -> Tensor:
        """Zeros, which only have the latent's shape."""
        height, width = (side // self.factor for side in image.shape[-2:])
        return image.new_zeros(1).expand(len(image), self.latent_channels, height, width)

    def preview(self, latent: Tensor) -> Tensor:
        """The features' mean, in grey."""
        return latent.mean(dim=1, keepdim=True).sigmoid().expand(-1, 3, -1, -1)

    def _workspace(self, height: int, width: int) -> int:
        return seamless.decoding_workspace(self.autoencoder, height // self.factor, width // self.factor)
