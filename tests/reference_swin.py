"""The published network, and its attention, in float64: code that shares nothing with the networks' own."""

import math
from itertools import pairwise, product

import torch
import torch.nn.functional as F
from onestep_sr.sr_models.networks.swin_unet import SwinUNetConfig


def attend(x: torch.Tensor, places: list, weights: dict, prefix: str, window: int, heads: int) -> torch.Tensor:
    """Attention among some pixels (n, c) at given (row, column) places, one score at a time, in float64."""
    qkv = x @ weights[f"{prefix}.qkv.weight"].T + weights[f"{prefix}.qkv.bias"]
    table = weights[f"{prefix}.relative_position_bias_table"]
    channels = x.shape[1]
    size = channels // heads
    bias = torch.stack(
        [
            torch.stack([table[(a - c + window - 1) * (2 * window - 1) + b - d + window - 1] for c, d in places])
            for a, b in places
        ]
    )
    out = torch.empty_like(x)
    for head in range(heads):
        q, k, v = (qkv[:, part * channels + head * size :][:, :size] for part in range(3))
        scores = torch.exp(q @ k.T / math.sqrt(size) + bias[..., head])
        out[:, head * size : (head + 1) * size] = (scores / scores.sum(1, keepdim=True)) @ v
    return out @ weights[f"{prefix}.proj.weight"].T + weights[f"{prefix}.proj.bias"]


class ReferenceUNet:
    """The published network read off its state dict, in float64. Windows that a shift cuts are small windows here."""

    def __init__(self, weights: dict, config: SwinUNetConfig):
        self.weights = {name: value.double() for name, value in weights.items()}
        self.config = config

    def conv(self, name, x, **options):
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], **options)

    def linear(self, name, x):
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name, x):
        groups = x.reshape(len(x), 32, -1)
        centred = groups - groups.mean(2, keepdim=True)
        x = (centred / torch.sqrt(centred.square().mean(2, keepdim=True) + 1e-5)).reshape(x.shape)
        return x * self.weights[f"{name}.weight"][:, None, None] + self.weights[f"{name}.bias"][:, None, None]

    @staticmethod
    def silu(x):
        return x / (1 + torch.exp(-x))

    def residual(self, name, x, time):
        hidden = self.conv(f"{name}.in_layers.2", self.silu(self.norm(f"{name}.in_layers.0", x)), padding=1)
        scale, shift = self.linear(f"{name}.emb_layers.1", self.silu(time)).chunk(2, dim=1)
        hidden = self.norm(f"{name}.out_layers.0", hidden) * (1 + scale[..., None, None]) + shift[..., None, None]
        hidden = self.conv(f"{name}.out_layers.3", self.silu(hidden), padding=1)
        widens = f"{name}.skip_connection.weight" in self.weights
        return (self.conv(f"{name}.skip_connection", x) if widens else x) + hidden

    def swin(self, name, x):
        x = self.conv(f"{name}.patch_embed.proj", x)
        for n in range(self.config.swin_depth):
            block = f"{name}.blocks.{n}"
            shift = self.config.window // 2 if f"{block}.attn_mask" in self.weights else 0
            x = x + self.windows(f"{block}.attn", self.norm(f"{block}.norm1", x), shift)
            hidden = self.conv(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x))
            gelu = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
            x = x + self.conv(f"{block}.mlp.fc2", gelu)
        return self.conv(f"{name}.patch_unembed.proj", x)

    def windows(self, name, x, shift):
        out, window = torch.empty_like(x), self.config.window
        heads = x.shape[1] // self.config.head_channels

        if shift and self.config.published_mask:
            return self.wrapped_windows(name, x, shift)

        def cuts(length):
            return list(pairwise(sorted({0, *range(shift, length, window), length})))

        for b, (top, bottom), (left, right) in product(range(len(x)), cuts(x.shape[2]), cuts(x.shape[3])):
            pixels = x[b, :, top:bottom, left:right].flatten(1).T
            places = list(product(range(top, bottom), range(left, right)))
            attended = attend(pixels, places, self.weights, name, window, heads)
            out[b, :, top:bottom, left:right] = attended.T.reshape(-1, bottom - top, right - left)
        return out

    def wrapped_windows(self, name, x, shift):
        """Windows that go on at the other side of the map; those of the last row fall into a left and a right part."""
        out, window = torch.empty_like(x), self.config.window
        (height, width), heads = x.shape[2:], x.shape[1] // self.config.head_channels
        tops, lefts = range(0, height, window), range(0, width, window)
        for b, top, left in product(range(len(x)), tops, lefts):
            halves = (range(window - shift), range(window - shift, window))
            for columns in halves if top == tops[-1] else (range(window),):
                places = list(product(range(window), columns))
                rows = [(top + shift + i) % height for i, _ in places]
                seen = [(left + shift + j) % width for _, j in places]
                out[b, :, rows, seen] = attend(x[b, :, rows, seen].T, places, self.weights, name, window, heads).T
        return out

    def block(self, name, x, time):
        inside = {key.removeprefix(f"{name}.").split(".")[0] for key in self.weights if key.startswith(f"{name}.")}
        for part in (f"{name}.{index}" for index in sorted(inside)):
            if f"{part}.in_layers.0.weight" in self.weights:
                x = self.residual(part, x, time)
            elif f"{part}.patch_embed.proj.weight" in self.weights:
                x = self.swin(part, x)
            elif f"{part}.op.weight" in self.weights:
                x = self.conv(f"{part}.op", x, stride=2, padding=1)
            elif f"{part}.conv.weight" in self.weights:
                x = self.conv(f"{part}.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3), padding=1)
            else:
                x = self.conv(part, x, padding=1)
        return x

    def time(self, timestep):
        half = self.config.channels // 2
        angles = timestep[:, None].double() * 10_000 ** (-torch.arange(half).double() / half)
        hidden = self.linear("time_embed.0", torch.cat([torch.cos(angles), torch.sin(angles)], 1))
        return self.linear("time_embed.2", self.silu(hidden))

    def encoder(self, latent, condition, time):
        """The output of each input block, then of the middle block."""
        maps = [torch.cat([latent, condition], 1).double()]
        for index in range(1 + max(int(key.split(".")[1]) for key in self.weights if key.startswith("input_blocks"))):
            maps.append(self.block(f"input_blocks.{index}", maps[-1], time))
        return [*maps[1:], self.block("middle_block", maps[-1], time)]

    def __call__(self, latent, condition, timestep):
        time = self.time(timestep)
        *skips, x = self.encoder(latent, condition, time)
        for index, skip in enumerate(reversed(skips)):
            x = self.block(f"output_blocks.{index}", torch.cat([x, skip], 1), time)
        return self.conv("out.2", self.silu(self.norm("out.0", x)), padding=1)
