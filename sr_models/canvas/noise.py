"""Noise for a whole canvas. Any part can be drawn separately and has the same values however it is split."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64  # latent rows drawn by one generator
MIX = 0x9E3779B97F4A7C15  # odd and far from powers of two, so that blocks of nearby seeds differ
SEEDS = 2**63


def noise_rows(channels: int, width: int, top: int, bottom: int, seed: int) -> Tensor:
    """Rows [top, bottom) of a canvas's Gaussian noise, (channels, bottom - top, width), drawn on the CPU."""
    blocks = [_block(channels, width, index, seed) for index in range(top // BLOCK, -(-bottom // BLOCK))]
    first = top // BLOCK * BLOCK
    return torch.cat(blocks, dim=1)[:, top - first : bottom - first]


def _block(channels: int, width: int, index: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed((seed + index * MIX) % SEEDS)
    return torch.randn(channels, BLOCK, width, generator=generator)


def canvas_noise(latent: Tensor, seed: int, top: int = 0, count: int = 1) -> Tensor:
    """Normal noise for the canvas's rows from `top` on, `count` times that for their latent (B, c, h, w): (B, count c,
    h, w).

    It is the same for every picture of a batch and on every device, and its first channels do not depend on `count`.
    """
    batch, channels, height, width = latent.shape
    noise = noise_rows(count * channels, width, top, top + height, seed).to(latent.device)
    return noise.expand(batch, -1, -1, -1)
