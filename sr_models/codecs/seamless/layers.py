"""The layers that autoencoders are made of, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...networks.vq_autoencoder import Quantizer


@dataclass(frozen=True)
class Convolution:
    """3x3 or 1x1, after GroupNorm and SiLU of its input if there is a norm."""

    conv: nn.Module
    norm: nn.Module | None = None


@dataclass(frozen=True)
class ResidualBlock:
    """shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x)))))); None as shortcut means the identity."""

    norm1: nn.Module
    conv1: nn.Module
    norm2: nn.Module
    conv2: nn.Module
    shortcut: nn.Module | None


@dataclass(frozen=True)
class Attention:
    """x + out(attention over all positions of norm(x)); the projections are 1x1 convolutions or linear."""

    norm: nn.Module
    query: nn.Module
    key: nn.Module
    value: nn.Module
    out: nn.Module
    heads: int


@dataclass(frozen=True)
class Upsample:
    """Nearest-neighbour x2, then a 3x3 convolution."""

    conv: nn.Module


@dataclass(frozen=True)
class Downsample:
    """A 3x3 convolution of stride 2, after padding a row and a column of zeros at the end.

    centred: it pads all sides by itself, and an odd side is rounded up.
    """

    conv: nn.Module
    centred: bool = False


@dataclass(frozen=True)
class Local:
    """A function of a map at one resolution, of which each row of the output depends on `halo` rows above and below.

    widths: channels of its input and output.
    """

    function: Callable[[Tensor], Tensor]
    halo: int
    widths: tuple[int, int]


@dataclass(frozen=True)
class Quantization:
    """Each pixel -> the nearest of `codes` codes."""

    quantizer: Quantizer
    codes: int


@dataclass(frozen=True)
class Packing:
    """The mean in 2x2 patches, normalised by the statistics of a BatchNorm: (2c, h, w) -> (4c, h/2, w/2), Flux.2."""

    norm: nn.BatchNorm2d


@dataclass(frozen=True)
class Unpacking:
    """The inverse of `Packing`: (4c, h, w) -> (c, 2h, 2w)."""

    norm: nn.BatchNorm2d


@dataclass(frozen=True)
class FramesUp:
    """Two frames from each frame after the first: the halves of a causal convolution's channels."""

    conv: nn.Module


@dataclass(frozen=True)
class FramesDown:
    """The first frame, then one from every two frames and the one before them, by a convolution over time."""

    conv: nn.Module


Layer = (
    Convolution
    | ResidualBlock
    | Attention
    | Upsample
    | Downsample
    | Local
    | Quantization
    | Packing
    | Unpacking
    | FramesUp
    | FramesDown
)


def unwrapped(module: nn.Module) -> Any:
    """The layer inside an adapter's wrapper, which has the channel counts."""
    return getattr(module, "base_layer", module)


def channels(module: nn.Module) -> tuple[int, int]:
    """Input and output channels of a convolution or linear layer."""
    plain = unwrapped(module)
    if isinstance(plain, nn.Linear):
        return plain.in_features, plain.out_features
    return plain.in_channels, plain.out_channels


def is_causal(module: nn.Module) -> bool:
    """Whether a convolution runs over frames too, this one and those before it."""
    return isinstance(unwrapped(module), nn.Conv3d)


def changes_weights(module: Any) -> bool:
    """Whether a call uses other weights than the module's own, because its host casts, patches or loads them."""
    casts = getattr(module, "comfy_cast_weights", False)
    patches = getattr(module, "weight_function", ()) or getattr(module, "bias_function", ())
    return bool(casts or patches or (module.weight is not None and module.weight.is_meta))


@dataclass(frozen=True)
class Affine:
    scale: float
    shift: float

    def __call__(self, band: Tensor) -> Tensor:
        return band * self.scale + self.shift


def soft_clamp(band: Tensor) -> Tensor:
    """Into (-3, 3), as tiny decoders begin."""
    return torch.tanh(band / 3) * 3


class Third(nn.Module):
    """One of the three parts of a convolution's channels: query, key and value in one layer."""

    def __init__(self, conv: nn.Module, part: int):
        super().__init__()
        self.conv, self.part = conv, part
        self.in_channels, self.out_channels = channels(conv)[0], channels(conv)[1] // 3

    def forward(self, band: Tensor) -> Tensor:
        return self.conv(band).chunk(3, 1)[self.part]
