"""A codec without weights: the latent is the pixel-unshuffled picture."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..core.model import Stage


class PixelShuffleCodec:
    """Picture (B, 3, H, W) in [0, 1] <-> latent (B, 3 f^2, H/f, W/f) in [-1, 1], lossless."""

    is_local = True

    def __init__(self, factor: int = 4):
        self.factor = factor
        self.latent_channels = 3 * factor**2

    def memory(self, height: int, width: int) -> int:
        return 0

    def encode(self, image: Tensor, stage: Stage | None = None) -> Tensor:
        """H and W must be multiples of the factor."""
        return F.pixel_unshuffle(image * 2 - 1, self.factor)

    def decode(self, latent: Tensor, stage: Stage | None = None) -> Tensor:
        """Not clamped; the caller clamps the final result."""
        return F.pixel_shuffle(latent, self.factor).add_(1).div_(2)

    def preview(self, latent: Tensor) -> Tensor:
        """A rough picture on the latent grid, (B, 3, h, w) in [0, 1]: each pixel's mean."""
        return latent.unflatten(1, (3, -1)).mean(dim=2).add(1).div(2).clamp(0, 1)
