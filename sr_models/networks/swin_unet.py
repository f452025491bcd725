"""The Swin U-Net of ResShift, SinSR and TAD-SR, at any size.

Module names follow the published checkpoints, so their files load without renaming.
Sources: ResShift (arXiv 2307.12348), Swin Transformer (arXiv 2103.14030).
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

GROUPS = 32
MASKED = -100.0


@dataclass(frozen=True)
class SwinUNetConfig:
    """Sizes of a Swin U-Net; the defaults are the published x4 network's (118,593,583 parameters).

    `native_size`: side of the latent grid that the network was designed for; levels whose grid is then no larger
    than one attention window do not shift their windows.
    `bicubic_skip`: the network predicts the difference to the bicubically enlarged condition, as a pixel-shuffled
    latent; the value is the factor (0: no skip).
    `published_mask`: mask shifted windows as in training of the published weights, see `published_window_mask`.
    """

    latent_channels: int = 3
    condition_channels: int = 3
    channels: int = 160
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    blocks_per_level: int = 2
    swin_channels: int = 192
    head_channels: int = 32
    swin_depth: int = 2
    window: int = 8
    mlp_ratio: int = 4
    native_size: int = 64
    bicubic_skip: int = 0
    published_mask: bool = False

    @property
    def multiple(self) -> int:
        """Each side of the latent must be a multiple of this many pixels."""
        return self.window * 2 ** (len(self.multipliers) - 1)


def timestep_embedding(timestep: Tensor, channels: int) -> Tensor:
    """Cosines, then sines of `timestep` (B,) at `channels // 2` frequencies from 1 to 1/10,000: (B, channels)."""
    half = channels // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angle = timestep[:, None].float() * torch.exp(-math.log(10_000) * exponent)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Leave autocast, where the device has it: MPS (before torch 2.5) and DirectML have none and raise an error."""
    try:
        return torch.autocast(device.type, enabled=False)
    except (RuntimeError, AssertionError):
        return nullcontext()


class GroupNorm(nn.GroupNorm):
    """32 groups, statistics in float32: safe in half precision, and faster in it on CPUs."""

    def __init__(self, channels: int):
        super().__init__(GROUPS, channels)

    def forward(self, input: Tensor) -> Tensor:
        with without_autocast(input.device):
            weight, bias = self.weight.float(), self.bias.float()
            return F.group_norm(input.float(), self.num_groups, weight, bias, self.eps).to(input.dtype)


class TimedBlocks(nn.ModuleList):
    """A sequence of layers; residual blocks also get the time embedding."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, time) if isinstance(layer, ResidualBlock) else layer(x)
        return x


class ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, time_channels: int):
        super().__init__()
        self.in_layers = nn.Sequential(
            GroupNorm(in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_channels, 2 * out_channels))
        self.out_layers = nn.Sequential(
            GroupNorm(out_channels),
            nn.SiLU(),
            nn.Identity(),  # dropout in the published layout
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = self.in_layers(x)
        scale, shift = self.emb_layers(time)[:, :, None, None].chunk(2, dim=1)
        hidden = self.out_layers[0](hidden) * (1 + scale) + shift
        return self.skip_connection(x) + self.out_layers[1:](hidden)


class Downsample(nn.Module):
    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of pixels in a window: (window^2, window^2)."""
    pixels = torch.arange(window, device="cpu")  # not on the meta device, even if the network is
    rows, columns = torch.meshgrid(pixels, pixels, indexing="ij")
    down = rows.flatten()[:, None] - rows.flatten()[None, :] + window - 1
    right = columns.flatten()[:, None] - columns.flatten()[None, :] + window - 1
    return down * (2 * window - 1) + right


def shifted_window_mask(height: int, width: int, window: int, shift: int, device: torch.device | None = None) -> Tensor:
    """Additive mask that separates pixels brought together by the cyclic shift: (windows, window^2, window^2)."""

    def region(length: int) -> Tensor:
        index = torch.arange(length, device=device)
        return (index >= length - window).int() + (index >= length - shift).int()

    regions = region(height)[:, None] * 3 + region(width)[None, :]
    regions = rearrange(regions, "(h p) (w q) -> (h w) (p q)", p=window, q=window)
    apart = regions[:, :, None] != regions[:, None, :]
    return torch.zeros(apart.shape, device=device).masked_fill(apart, MASKED)


def published_window_mask(
    height: int, width: int, window: int, shift: int, device: torch.device | None = None
) -> Tensor:
    """The mask that ResShift's and SinSR's weights were trained with, shaped like `shifted_window_mask`'s.

    It only separates the left and right parts of windows in the bottom row; elsewhere, pixels brought together by
    the shift attend to each other.
    """
    right = (torch.arange(window, device=device) >= window - shift).repeat(window)
    mask = torch.zeros(height // window, width // window, window**2, window**2, device=device)
    mask[-1].masked_fill_(right[:, None] != right[None, :], MASKED)
    return mask.flatten(0, 1)


def border_mask(mask: Tensor) -> Tensor:
    """The four kinds of windows in the mask of a square (windows, n, n): (2, 2, n, n), a view.

    Inside, at the right border; at the lower border, in the corner. A mask of any size consists of these.
    """
    side = math.isqrt(len(mask))
    return mask.unflatten(0, (side, side))[:: side - 1, :: side - 1]


def add_mask(scores: Tensor, mask: Tensor) -> None:
    """Add a mask from `border_mask` to scores (B, rows, columns, heads, n, n) in place. Inner windows have none."""
    (_, right), (lower, corner) = mask
    scores[:, :-1, -1] += right
    scores[:, -1, :-1] += lower
    scores[:, -1, -1] += corner


class WindowAttention(nn.Module):
    relative_position_index: Tensor

    def __init__(self, channels: int, window: int, heads: int):
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, mask: Tensor | None = None, columns: int = 1) -> Tensor:
        """x: (B, windows, pixels, channels), `columns` windows in a row; mask: as in `add_mask`, or None."""
        query, key, value = rearrange(self.qkv(x), "b n p (t h c) -> t b n h p c", t=3, h=self.heads)
        bias = rearrange(self.relative_position_bias_table[self.relative_position_index], "p q h -> h p q")
        # Explicit, because torch's fused attention does the same for a learned bias, with more copies.
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        scores += bias.to(scores.dtype)
        if mask is not None:
            add_mask(scores.unflatten(1, (-1, columns)), mask.to(scores.dtype))
        out = scores.softmax(dim=-1).to(value.dtype) @ value
        return self.proj(rearrange(out, "b n h p c -> b n p (h c)"))


class PointwiseMLP(nn.Module):
    def __init__(self, channels: int, ratio: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, ratio * channels, 1)
        self.fc2 = nn.Conv2d(ratio * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    attn_mask: Tensor | None

    def __init__(self, config: SwinUNetConfig, grid: int, shift: int):
        super().__init__()
        channels = config.swin_channels
        self.window, self.shift = config.window, shift
        self.norm1 = GroupNorm(channels)
        self.attn = WindowAttention(channels, config.window, channels // config.head_channels)
        self.norm2 = GroupNorm(channels)
        self.mlp = PointwiseMLP(channels, config.mlp_ratio)
        make_mask = published_window_mask if config.published_mask else shifted_window_mask
        mask = make_mask(grid, grid, self.window, shift, torch.device("cpu")) if shift else None
        self.register_buffer("attn_mask", mask)  # a buffer, because the published files contain it

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        hidden = self._rolled(self.norm1(x), -self.shift)
        size = {"p": self.window, "q": self.window}
        hidden = rearrange(hidden, "b c (h p) (w q) -> b (h w) (p q) c", **size)
        mask = None if self.attn_mask is None else border_mask(self.attn_mask)
        hidden = self.attn(hidden, mask, columns=width // self.window)
        hidden = rearrange(hidden, "b (h w) (p q) c -> b c (h p) (w q)", h=height // self.window, **size)
        x = x + self._rolled(hidden, self.shift)
        return x + self.mlp(self.norm2(x))

    def _rolled(self, x: Tensor, by: int) -> Tensor:
        return torch.roll(x, (by, by), dims=(2, 3)) if by else x


class PointwiseProjection(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class SwinLayer(nn.Module):
    """Swin blocks between two 1x1 convolutions that change the width; every second block shifts its windows."""

    def __init__(self, channels: int, config: SwinUNetConfig, grid: int):
        super().__init__()
        shift = config.window // 2 if grid > config.window else 0
        self.patch_embed = PointwiseProjection(channels, config.swin_channels)
        self.blocks = nn.ModuleList(SwinBlock(config, grid, shift * (i % 2)) for i in range(config.swin_depth))
        self.patch_unembed = PointwiseProjection(config.swin_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for block in self.blocks:
            x = block(x)
        return self.patch_unembed(x)


class SwinUNet(nn.Module):
    """Predicts the clean latent from a noisy latent, the LR picture on the same grid, and the timestep."""

    def __init__(self, config: SwinUNetConfig | None = None):
        super().__init__()
        self.config = config = config or SwinUNetConfig()
        time_channels = 4 * config.channels
        widths = [config.channels * m for m in config.multipliers]
        grids = [config.native_size // 2**level for level in range(len(widths))]

        self.time_embed = nn.Sequential(
            nn.Linear(config.channels, time_channels), nn.SiLU(), nn.Linear(time_channels, time_channels)
        )
        stem = nn.Conv2d(config.latent_channels + config.condition_channels, widths[0], 3, padding=1)
        self.input_blocks = nn.ModuleList([TimedBlocks([stem])])
        channels, skips = widths[0], [widths[0]]
        for level, (width, grid) in enumerate(zip(widths, grids, strict=True)):
            for index in range(config.blocks_per_level):
                block = TimedBlocks([ResidualBlock(channels, width, time_channels)])
                if index == 0:
                    block.append(SwinLayer(width, config, grid))
                self.input_blocks.append(block)
                channels = width
                skips.append(channels)
            if level < len(widths) - 1:
                self.input_blocks.append(TimedBlocks([Downsample(channels, channels)]))
                skips.append(channels)

        self.middle_block = TimedBlocks(
            [
                ResidualBlock(channels, channels, time_channels),
                SwinLayer(channels, config, grids[-1]),
                ResidualBlock(channels, channels, time_channels),
            ]
        )

        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for index in range(config.blocks_per_level + 1):
                block = TimedBlocks([ResidualBlock(channels + skips.pop(), widths[level], time_channels)])
                channels = widths[level]
                if index == 0:
                    block.append(SwinLayer(channels, config, grids[level]))
                if level > 0 and index == config.blocks_per_level:
                    block.append(Upsample(channels))
                self.output_blocks.append(block)

        last = nn.Conv2d(channels, config.latent_channels, 3, padding=1)
        if config.bicubic_skip:
            nn.init.zeros_(last.weight)
        self.out = nn.Sequential(GroupNorm(channels), nn.SiLU(), last)

    def _enter(self, latent: Tensor, condition: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """The first block's input and the time embedding, in the weights' precision."""
        dtype = next(self.time_embed.parameters()).dtype
        time = self.time_embed(timestep_embedding(timestep, self.config.channels).to(dtype))
        return torch.cat([latent, condition], dim=1).to(dtype), time

    def features(self, latent: Tensor, condition: Tensor, timestep: Tensor) -> list[Tensor]:
        """The encoder's map at the end of each level, finest first, then the middle block's."""
        x, time = self._enter(latent, condition, timestep)
        maps = []
        for index, block in enumerate(self.input_blocks):
            if index and index % (self.config.blocks_per_level + 1) == 0:  # a downsampling block
                maps.append(x)
            x = block(x, time)
        return [*maps, x, self.middle_block(x, time)]

    def forward(self, latent: Tensor, condition: Tensor, timestep: Tensor) -> Tensor:
        """Predict the clean latent.

        Args:
            latent: (B, latent_channels, h, w), already divided by sqrt(1 + kappa^2 eta_t);
                h and w are multiples of `config.multiple`.
            condition: (B, condition_channels, h, w), the LR picture in [-1, 1].
            timestep: (B,), the raw index 0 .. T-1.

        Returns:
            (B, latent_channels, h, w) in float32.
        """
        x, time = self._enter(latent, condition, timestep)
        skips = []
        for block in self.input_blocks:
            x = block(x, time)
            skips.append(x)
        x = self.middle_block(x, time)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), time)
        prediction = self._head(x)
        if self.config.bicubic_skip:
            factor = self.config.bicubic_skip
            enlarged = F.interpolate(condition.float(), scale_factor=factor, mode="bicubic", align_corners=False)
            prediction = prediction + F.pixel_unshuffle(enlarged, factor)
        return prediction

    def _head(self, x: Tensor) -> Tensor:
        """The last layer in float32; in half precision it causes visible banding in smooth skies."""
        norm, activation, convolution = self.out
        assert isinstance(convolution, nn.Conv2d)  # noqa: S101 (for the type checker)
        with without_autocast(x.device):
            x = activation(norm(x.float()))
            bias = None if convolution.bias is None else convolution.bias.float()
            return F.conv2d(x, convolution.weight.float(), bias, padding=1)
