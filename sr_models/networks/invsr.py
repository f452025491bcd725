"""InvSR's noise predictor (arXiv 2412.09013): from the LR picture to the noise with which Stable Diffusion starts.

It is an encoder with a time embedding and attention on every level. Names are the published file's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .vq_autoencoder import Downsample, group_norm

LEAST_FREQUENCIES = 128
LONGEST_PERIOD = 10000.0
LOG_VARIANCE = (-30.0, 20.0)  # bounds


@dataclass(frozen=True)
class PredictorConfig:
    """Sizes; the defaults are the published network's (33,837,576 parameters)."""

    widths: tuple[int, ...] = (256, 512)
    blocks: int = 3
    embedding: int = 512
    head: int = 64
    latent_channels: int = 4

    @property
    def frequencies(self) -> int:
        return max(LEAST_FREQUENCIES, self.widths[0])


class TimeEmbedding(nn.Module):
    def __init__(self, config: PredictorConfig):
        super().__init__()
        self.frequencies = config.frequencies
        self.linear_1 = nn.Linear(config.frequencies, config.embedding)
        self.linear_2 = nn.Linear(config.embedding, config.embedding)

    def forward(self, timesteps: Tensor) -> Tensor:
        """Timesteps (B,) -> (B, e)."""
        half = self.frequencies // 2
        exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
        phases = timesteps.float()[:, None] * (-math.log(LONGEST_PERIOD) * exponents).exp()
        waves = torch.cat([phases.cos(), phases.sin()], dim=1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(waves)))


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, embedding: int):
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(embedding, out_channels)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(F.silu(time))[:, :, None, None]
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(hidden)))


class Attention(nn.Module):
    """Attention over all positions, in heads of at most `head` channels."""

    def __init__(self, channels: int, head: int):
        super().__init__()
        self.heads = channels // min(head, channels)
        self.group_norm = group_norm(channels)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        hidden = rearrange(self.group_norm(x), "b c h w -> b (h w) c")
        query, key, value = (
            rearrange(part(hidden), "b n (k d) -> b k n d", k=self.heads) for part in (self.to_q, self.to_k, self.to_v)
        )
        hidden = rearrange(F.scaled_dot_product_attention(query, key, value), "b k n d -> b n (k d)")
        return x + rearrange(self.to_out(hidden), "b (h w) c -> b c h w", h=x.shape[2])


class Level(nn.Module):
    """Residual blocks, each followed by an attention; then half the resolution, except for the last level."""

    def __init__(self, in_channels: int, out_channels: int, config: PredictorConfig, *, is_last: bool):
        super().__init__()
        widths = [in_channels] + [out_channels] * config.blocks
        self.resnets = nn.ModuleList(ResnetBlock(a, b, config.embedding) for a, b in pairwise(widths))
        self.attentions = nn.ModuleList(Attention(out_channels, config.head) for _ in range(config.blocks))
        self.downsamplers = nn.ModuleList([] if is_last else [Downsample(out_channels)])

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(x, time))
        for downsampler in self.downsamplers:
            x = downsampler(x)
        return x


class Middle(nn.Module):
    def __init__(self, channels: int, config: PredictorConfig):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, config.embedding) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(channels, config.head)])

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        first, last = self.resnets
        return last(self.attentions[0](first(x, time)), time)


class TimedEncoder(nn.Module):
    def __init__(self, config: PredictorConfig):
        super().__init__()
        widths, last = (config.widths[0], *config.widths), len(config.widths) - 1
        self.time_embedding = TimeEmbedding(config)
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Level(a, b, config, is_last=number == last) for number, (a, b) in enumerate(pairwise(widths))
        )
        self.mid_block = Middle(widths[-1], config)
        self.conv_norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, picture: Tensor, timesteps: Tensor) -> Tensor:
        time = self.time_embedding(timesteps)
        x = self.conv_in(picture)
        for level in self.down_blocks:
            x = level(x, time)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x, time))))


class NoisePredictor(nn.Module):
    """The distribution of the noise for a picture."""

    def __init__(self, config: PredictorConfig):
        super().__init__()
        self.encoder = TimedEncoder(config)

    @torch.no_grad()
    def forward(self, picture: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Picture (B, 3, 2 h, 2 w) in [-1, 1] and timesteps (B,) -> mean and deviation, (B, c, h, w) each.

        Computed on the network's device and in its precision; the results are float32, on the picture's device.
        """
        weight = self.encoder.conv_in.weight
        found = self.encoder(picture.to(weight), timesteps.to(weight.device)).to(picture.device, torch.float32)
        mean, log_variance = found.chunk(2, dim=1)
        return mean, (log_variance.clamp(*LOG_VARIANCE) / 2).exp()
