"""The VQ autoencoder of latent diffusion, used by ResShift, SinSR and TAD-SR.

Module names follow `autoencoder_vq_f4.pth`. Source: latent diffusion (arXiv 2112.10752).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


@dataclass(frozen=True)
class VQConfig:
    """Sizes; the defaults are VQ-f4's (55,322,782 parameters).

    `blocks_per_level`: of the encoder, for all levels or for each; the decoder has one more.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4)
    blocks_per_level: int | tuple[int, ...] = 2
    latent_channels: int = 3
    codes: int = 8192

    @property
    def factor(self) -> int:
        """Ratio of picture side to latent side."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Residual blocks of the encoder's levels, finest first."""
        same = self.blocks_per_level
        return (same,) * len(self.multipliers) if isinstance(same, int) else same


FACES_F8 = VQConfig(64, (1, 2, 4, 8), (1, 2, 3, 4), latent_channels=8, codes=4096)  # 77,009,115 parameters


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(hidden)))


class AttentionBlock(nn.Module):
    """Single-head attention over all positions."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(x)
        query, key, value = (rearrange(f(hidden), "b c h w -> b 1 (h w) c") for f in (self.q, self.k, self.v))
        hidden = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj_out(rearrange(hidden, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, then its resampling if it has one."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int):
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.ModuleList(ResnetBlock(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class Middle(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttentionBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    def __init__(self, config: VQConfig):
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        for level, width in enumerate(widths):
            before = widths[level - 1] if level else config.channels
            self.down.append(Level(before, width, config.blocks[level]))
            if level < len(widths) - 1:
                self.down[level].downsample = Downsample(width)
        self.mid = Middle(widths[-1])
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, config: VQConfig):
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        above = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(
            Level(above[level], width, config.blocks[level] + 1) for level, width in enumerate(widths)
        )
        for level, width in enumerate(widths):
            if level:
                self.up[level].upsample = Upsample(width)
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Quantizer(nn.Module):
    """Maps each latent pixel to the nearest code."""

    CHUNK = 16_384  # pixels compared with all codes at once: 512 MB of distances for 8192 codes

    def __init__(self, config: VQConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.codes, config.latent_channels)

    def forward(self, z: Tensor) -> Tensor:
        book = self.embedding.weight.float()
        pixels = rearrange(z.float(), "b c h w -> (b h w) c")
        nearest = torch.cat([torch.cdist(part, book).argmin(dim=1) for part in pixels.split(self.CHUNK)])
        return rearrange(book[nearest], "(b h w) c -> b c h w", b=z.shape[0], h=z.shape[2]).to(z.dtype)


class VQAutoencoder(nn.Module):
    """Picture (B, 3, H, W) in [-1, 1] <-> latent (B, c, H/f, W/f), as configured; scale factor 1."""

    def __init__(self, config: VQConfig | None = None):
        super().__init__()
        self.config = config = config or VQConfig()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def encode(self, image: Tensor) -> Tensor:
        """Not quantised; `decode` does that."""
        return self.quant_conv(self.encoder(image))

    def decode(self, latent: Tensor) -> Tensor:
        """Quantise every latent pixel to the nearest code, then decode; not clamped."""
        return self.decoder(self.post_quant_conv(self.quantize(latent)))
