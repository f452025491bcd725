"""InvSR's noise predictor in small, random and in the layout in which its authors publish it, from diffusers' own
blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import small_sd3
import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets import unet_2d_blocks
from torch import Tensor, nn

HEAD = 64
Sizes = tuple[tuple[int, ...], int, int]  # widths, blocks per level, width of the time embedding
SMALL: Sizes = ((64, 128), 2, 96)
PUBLISHED: Sizes = ((256, 512), 3, 512)
NAME = "noise_predictor_sd_turbo_v5.pth"


class Predictor(nn.Module):
    """Moments of the noise, from a picture in [-1, 1] and timesteps."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        widths, blocks, embedding = sizes
        shared: dict[str, Any] = {"temb_channels": embedding, "resnet_eps": 1e-6, "resnet_act_fn": "silu"}
        shared |= {"attention_head_dim": HEAD, "resnet_groups": 32}
        frequencies = max(128, widths[0])
        part = self.encoder = nn.Module()
        part.time_proj = Timesteps(frequencies, flip_sin_to_cos=True, downscale_freq_shift=0)
        part.time_embedding = TimestepEmbedding(frequencies, embedding)
        part.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        part.down_blocks = nn.ModuleList(
            unet_2d_blocks.get_down_block(
                "AttnDownBlock2D",
                num_layers=blocks,
                in_channels=widths[max(0, number - 1)],
                out_channels=width,
                add_downsample=number < len(widths) - 1,
                downsample_padding=0,
                **shared,
            )
            for number, width in enumerate(widths)
        )
        part.mid_block = unet_2d_blocks.UNetMidBlock2D(in_channels=widths[-1], **shared)
        part.conv_norm_out = nn.GroupNorm(32, widths[-1], eps=1e-6)
        part.conv_out = nn.Conv2d(widths[-1], 8, 3, padding=1)

    def forward(self, picture: Tensor, timesteps: Tensor) -> Tensor:
        part: Any = self.encoder
        time = part.time_embedding(part.time_proj(timesteps).to(picture))
        x = part.conv_in(picture)
        for block in part.down_blocks:
            x, _ = block(x, time)
        return part.conv_out(nn.functional.silu(part.conv_norm_out(part.mid_block(x, time))))


def predictor(sizes: Sizes = SMALL) -> Predictor:
    """Its noise has a mean and a deviation of order 1."""
    network = Predictor(sizes).requires_grad_(False)
    small_sd3.fill(network, torch.Generator().manual_seed(12))
    return network.eval()


def write(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(predictor().state_dict(), folder / NAME)
    return folder / NAME
