"""The Recognize Anything Model (arXiv 2306.03514): a picture's tags, and its embedding for networks that look at it.

A Swin-L (arXiv 2103.14030) reads the picture at a fixed size. Its mean and its last pixels, projected, are the
embedding; the tag head compares it with an embedding of each tag. Module names follow the published checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .swin_unet import WindowAttention, border_mask, shifted_window_mask

PATCH = 4
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class RAMConfig:
    """Sizes of the network; the defaults are those of `ram_swin_large_14m.pth`."""

    channels: int = 192
    depths: tuple[int, ...] = (2, 2, 18, 2)
    heads: tuple[int, ...] = (6, 12, 24, 48)
    window: int = 12
    embedding: int = 512
    hidden: int = 768
    intermediate: int = 3072
    tag_heads: int = 4
    tag_layers: int = 2
    tags: int = 4585

    @property
    def side(self) -> int:
        """Side of the picture that the network reads: its last level is one window."""
        return PATCH * self.window * 2 ** (len(self.depths) - 1)


class MLP(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    def __init__(self, channels: int, heads: int, window: int, shift: int):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, window, heads)
        self.mlp = MLP(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, side, side, channels), the side a multiple of the window."""
        side, shift = x.shape[1], self.shift if x.shape[1] > self.window else 0
        windows = self.norm1(x).roll((-shift, -shift), (1, 2))
        windows = rearrange(windows, "b (h p) (w q) c -> b (h w) (p q) c", p=self.window, q=self.window)
        mask = border_mask(shifted_window_mask(side, side, self.window, shift, x.device)) if shift else None
        windows = self.attn(windows, mask, side // self.window)
        back = rearrange(
            windows, "b (h w) (p q) c -> b (h p) (w q) c", w=side // self.window, p=self.window, q=self.window
        )
        x = x + back.roll((shift, shift), (1, 2))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, c) -> (B, h/2, w/2, 2 c)."""
        return self.reduction(self.norm(rearrange(x, "b (h p) (w q) c -> b h w (q p c)", p=2, q=2)))


class SwinLevel(nn.Module):
    def __init__(self, channels: int, depth: int, heads: int, window: int, *, last: bool):
        super().__init__()
        shifts = [0 if number % 2 == 0 else window // 2 for number in range(depth)]
        self.blocks = nn.Sequential(*(SwinBlock(channels, heads, window, shift) for shift in shifts))
        if not last:
            self.downsample = PatchMerging(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return self.downsample(x) if hasattr(self, "downsample") else x


class PatchEmbedding(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.proj = nn.Conv2d(3, channels, PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(channels)

    def forward(self, picture: Tensor) -> Tensor:
        return self.norm(self.proj(picture).movedim(1, -1))


class Swin(nn.Module):
    def __init__(self, config: RAMConfig):
        super().__init__()
        self.patch_embed = PatchEmbedding(config.channels)
        last = len(config.depths) - 1
        self.layers = nn.Sequential(
            *(
                SwinLevel(config.channels * 2**level, depth, heads, config.window, last=level == last)
                for level, (depth, heads) in enumerate(zip(config.depths, config.heads, strict=True))
            )
        )
        self.norm = nn.LayerNorm(config.channels * 2**last)

    def forward(self, picture: Tensor) -> Tensor:
        """(B, 3, side, side) -> (B, 1 + pixels, channels), the mean first."""
        pixels = self.norm(self.layers(self.patch_embed(picture))).flatten(1, 2)
        return torch.cat([pixels.mean(dim=1, keepdim=True), pixels], dim=1)


class CrossAttention(nn.Module):
    def __init__(self, channels: int, context: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key, self.value = nn.Linear(context, channels), nn.Linear(context, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        parts = (self.query(x), self.key(context), self.value(context))
        query, key, value = (rearrange(part, "b n (h c) -> b h n c", h=self.heads) for part in parts)
        return rearrange(F.scaled_dot_product_attention(query, key, value), "b h n c -> b n (h c)")


class Residual(nn.Module):
    """BERT's output of a layer: a projection added to the layer's input, normalized."""

    def __init__(self, inner: int, channels: int):
        super().__init__()
        self.dense = nn.Linear(inner, channels)
        self.LayerNorm = nn.LayerNorm(channels, eps=1e-12)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + skip)


class TagLayer(nn.Module):
    """BERT's layer without self-attention."""

    def __init__(self, config: RAMConfig):
        super().__init__()
        attention = CrossAttention(config.hidden, config.embedding, config.tag_heads)
        self.crossattention = nn.ModuleDict({"self": attention, "output": Residual(config.hidden, config.hidden)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden, config.intermediate)})
        self.output = Residual(config.intermediate, config.hidden)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.crossattention["output"](self.crossattention["self"](x, context), x)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class RAM(nn.Module):
    def __init__(self, config: RAMConfig):
        super().__init__()
        self.side = config.side
        self.visual_encoder = Swin(config)
        self.image_proj = nn.Linear(config.channels * 2 ** (len(config.depths) - 1), config.embedding)
        self.label_embed = nn.Parameter(torch.zeros(config.tags, config.embedding))
        self.wordvec_proj = nn.Linear(config.embedding, config.hidden)
        layers = nn.ModuleList(TagLayer(config) for _ in range(config.tag_layers))
        self.tagging_head = nn.ModuleDict({"encoder": nn.ModuleDict({"layer": layers})})
        self.fc = nn.Linear(config.hidden, 1)

    def embed(self, picture: Tensor, mode: str = "bilinear") -> Tensor:
        """(B, 3, H, W) in [0, 1] -> the embedding (B, 1 + pixels, c): (B, 145, 512) in the published network; `mode` is
        how the picture is resized to the network's side."""
        weight = self.image_proj.weight
        # Without antialiasing, as in the versions that the published scripts ask for.
        fitted = F.interpolate(picture.to(weight), (self.side, self.side), mode=mode, antialias=False)
        mean, deviation = (fitted.new_tensor(row)[:, None, None] for row in (MEAN, DEVIATION))
        return self.image_proj(self.visual_encoder((fitted - mean) / deviation))

    def probabilities(self, embedding: Tensor) -> Tensor:
        """The probability of each tag: (B, 145, 512) -> (B, tags)."""
        x = F.relu(self.wordvec_proj(self.label_embed)).expand(len(embedding), -1, -1)
        encoder: Any = self.tagging_head["encoder"]
        for layer in encoder["layer"]:
            x = layer(x, embedding)
        return self.fc(x).squeeze(-1).sigmoid()
