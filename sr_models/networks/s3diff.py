"""S3Diff's networks beside Stable Diffusion (arXiv 2409.17058): from a picture to matrices that change its LoRAs.

Two small networks estimate how blurred and how noisy the picture is. The two scores, and a learned embedding of each
block of the U-Net and of the VAE's encoder, give a matrix (r, r) for the block. Names are the published files'.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCORES = 2  # blur and noise
FREQUENCIES = 64
WIDTHS = {"degradation": 256, "block": 64}
BLOCKS = {"vae": 6, "unet": 10}
STRIDE, REACH = 2, 24  # how far pixels of the estimator see, rounded up
BAND = 2**20  # pixels that are estimated at once


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x)))."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.conv2(F.relu(self.conv1(hidden)))


def _body() -> nn.Sequential:
    fine, coarse = ([ResidualBlock(width) for _ in range(count)] for width, count in ((64, 6), (128, 2)))
    return nn.Sequential(*fine, nn.Conv2d(64, 128, 3, STRIDE, padding=1), *coarse)


class DegradationEstimator(nn.Module):
    """A picture (1, 3, H, W) in [0, 1] -> its scores (1, 2) from 0 to 1. The published file is `de_net.pth`."""

    def __init__(self):
        super().__init__()
        self.conv_first = nn.ModuleList(nn.Conv2d(3, 64, 3, padding=1) for _ in range(SCORES))
        self.body = nn.ModuleList(_body() for _ in range(SCORES))
        self.fc_degree = nn.ModuleList(
            nn.Sequential(nn.Linear(128, 512), nn.ReLU(), nn.Linear(512, 1), nn.Sigmoid()) for _ in range(SCORES)
        )

    def forward(self, picture: Tensor) -> Tensor:
        parts = zip(self.conv_first, self.body, self.fc_degree, strict=True)
        return torch.cat([head(_mean(nn.Sequential(first, body), picture)) for first, body, head in parts], dim=1)


def _mean(features: nn.Module, picture: Tensor) -> Tensor:
    """The features' mean (1, c) over the picture, computed in bands of rows."""
    height, width = picture.shape[-2:]
    rows, sums = max(STRIDE, BAND // width // STRIDE * STRIDE), []
    for top in range(0, height, rows):
        first, last = max(0, top - REACH), min(height, top + rows + REACH)
        found = features(picture[:, :, first:last])[:, :, (top - first) // STRIDE :]
        sums.append(found[:, :, : -(-min(rows, height - top) // STRIDE)].sum((-2, -1)))
    return torch.stack(sums).sum(0) / (-(-height // STRIDE) * -(-width // STRIDE))


class S3DiffModulator(nn.Module):
    """A picture (1, 3, H, W) in [0, 1] -> matrices by part: `vae` (6, r, r), one for each of the encoder's four levels,
    its middle and its outermost convolutions, and `unet` (10, r, r), for four levels down, the middle, four levels up
    and the last convolution.

    `ranks`: r by part.
    """

    def __init__(self, ranks: dict[str, int]):
        super().__init__()
        self.de_net = DegradationEstimator()
        self.w = nn.Parameter(torch.empty(FREQUENCIES))
        wide, narrow = WIDTHS["degradation"], WIDTHS["block"]
        for part, rank in ranks.items():
            self.add_module(f"{part}_de_mlp", nn.Sequential(nn.Linear(2 * SCORES * FREQUENCIES, wide), nn.ReLU()))
            self.add_module(f"{part}_block_mlp", nn.Sequential(nn.Linear(narrow, narrow), nn.ReLU()))
            self.add_module(f"{part}_fuse_mlp", nn.Linear(wide + narrow, rank**2))
            self.add_module(f"{part}_block_embeddings", nn.Embedding(BLOCKS[part], narrow))

    @torch.no_grad()
    def forward(self, picture: Tensor) -> dict[str, Tensor]:
        phase = 2 * math.pi * self.de_net(picture.to(self.w.device, self.w.dtype))[0, :, None] * self.w
        waves = torch.cat([phase.sin(), phase.cos()], dim=1).flatten()
        return {part: self._matrices(part, waves) for part in BLOCKS}

    def _matrices(self, part: str, waves: Tensor) -> Tensor:
        degradation = self.get_submodule(f"{part}_de_mlp")(waves)
        blocks = self.get_submodule(f"{part}_block_mlp")(self.get_parameter(f"{part}_block_embeddings.weight"))
        both = torch.cat([degradation.expand(len(blocks), -1), blocks], dim=1)
        values = self.get_submodule(f"{part}_fuse_mlp")(both)
        rank = math.isqrt(values.shape[1])
        return values.view(len(blocks), rank, rank)
