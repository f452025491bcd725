"""AdcSR's network: Stable Diffusion 2.1's U-Net without text and time, three quarters as wide, on the LR's own pixels.

Module names follow diffusers', as the published file's do. Source: AdcSR (arXiv 2411.13383).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .swin_unet import Upsample
from .vq_autoencoder import Decoder, VQConfig

UNSHUFFLE = 2  # LR pixels per side of a position
GROUPS = (32, 24, 16, 12, 8, 6, 4, 2, 1)


HALF = VQConfig(64, (1, 2, 4, 4), latent_channels=240)  # the decoder's sizes; its codes are not used


@dataclass(frozen=True)
class AdcConfig:
    """Sizes; the defaults are the published network's.

    `heads`: of the attentions in each level but the last one, which has none; the middle has the last number.
    """

    widths: tuple[int, ...] = (240, 480, 960, 960)
    heads: tuple[int, ...] = (5, 10, 20, 20)
    decoder: VQConfig = HALF

    @property
    def multiple(self) -> int:
        """Each side of the canvas must be a multiple of this many positions."""
        return 2 ** (len(self.widths) - 1)


def group_norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    """The most groups that pruning left possible."""
    return nn.GroupNorm(next(n for n in GROUPS if channels % n == 0), channels, eps)


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.conv_shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(hidden)))


class SelfAttention(nn.Module):
    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            rearrange(project(x), "b n (h c) -> b h n c", h=self.heads) for project in (self.to_q, self.to_k, self.to_v)
        )
        hidden = F.scaled_dot_product_attention(query, key, value)
        return self.to_out[0](rearrange(hidden, "b h n c -> b n (h c)"))


class GEGLU(nn.Module):
    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(channels, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        # The second one is dropout in the published layout.
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.norm1, self.norm3 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn1 = SelfAttention(channels, heads)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """A transformer block over all positions of a map (B, C, H, W)."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.norm = group_norm(channels, eps=1e-6)
        self.proj_in, self.proj_out = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, heads)])

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.proj_in(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        for block in self.transformer_blocks:
            hidden = block(hidden)
        return x + rearrange(self.proj_out(hidden), "b (h w) c -> b c h w", h=x.shape[2])


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by its attention if `heads` is not 0."""

    attentions: nn.ModuleList
    downsamplers: nn.ModuleList
    upsamplers: nn.ModuleList

    def __init__(self, widths: list[tuple[int, int]], heads: int):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(*width) for width in widths)
        if heads:
            self.attentions = nn.ModuleList(Transformer(width, heads) for _, width in widths)

    def block(self, index: int, x: Tensor) -> Tensor:
        x = self.resnets[index](x)
        return self.attentions[index](x) if hasattr(self, "attentions") else x


class Middle(nn.Module):
    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels) for _ in range(2))
        self.attentions = nn.ModuleList([Transformer(channels, heads)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class AdcUNet(nn.Module):
    """From the LR picture to the features that the half decoder starts from."""

    def __init__(self, config: AdcConfig | None = None):
        super().__init__()
        self.config = config = config or AdcConfig()
        widths, last = config.widths, len(config.widths) - 1
        self.conv_in = nn.Conv2d(3 * UNSHUFFLE**2, widths[0], 3, padding=1)
        channels, skips = widths[0], [widths[0]]
        self.down_blocks = nn.ModuleList()
        for index, (width, heads) in enumerate(zip(widths, config.heads, strict=True)):
            level = Level([(channels, width), (width, width)], heads if index < last else 0)
            channels, skips = width, [*skips, width, width]
            if index < last:
                level.downsamplers = nn.ModuleList([Downsample(width)])
                skips.append(width)
            self.down_blocks.append(level)
        self.mid_block = Middle(channels, config.heads[-1])
        self.up_blocks = nn.ModuleList()
        for index in reversed(range(last + 1)):
            entering = [(channels if n == 0 else widths[index]) + skips.pop() for n in range(3)]
            level = Level([(each, widths[index]) for each in entering], config.heads[index] if index < last else 0)
            channels = widths[index]
            if index:
                level.upsamplers = nn.ModuleList([Upsample(channels)])
            self.up_blocks.append(level)
        self.conv_norm_out = group_norm(channels)

    def forward(self, lr: Tensor) -> Tensor:
        """`lr` (B, 3, 2 h, 2 w) in [-1, 1], h and w multiples of `config.multiple` -> (B, widths[0], h, w)."""
        x = self.conv_in(F.pixel_unshuffle(lr, UNSHUFFLE))
        skips = [x]
        for level in cast(Iterable[Level], self.down_blocks):
            for index in range(2):
                x = level.block(index, x)
                skips.append(x)
            if hasattr(level, "downsamplers"):
                x = level.downsamplers[0](x)
                skips.append(x)
        x = self.mid_block(x)
        for level in cast(Iterable[Level], self.up_blocks):
            for index in range(3):
                x = level.block(index, torch.cat([x, skips.pop()], dim=1))
            if hasattr(level, "upsamplers"):
                x = level.upsamplers[0](x)
        return F.silu(self.conv_norm_out(x))


class HalfDecoder(nn.Module):
    """From the features to the picture: Stable Diffusion's decoder, half as wide.

    Its first convolution is the U-Net's last one.
    """

    def __init__(self, config: VQConfig):
        super().__init__()
        self.config = config
        self.decoder = Decoder(config)

    def decode(self, features: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, 3, 8 h, 8 w), about [-1, 1], not clamped."""
        return self.decoder(features)
