"""The layers that autoencoders are made of, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...networks.vq_autoencoder import Quantizer


@dataclass(frozen=True)
class Convolution:
    """3x3 or 1x1, after GroupNorm and SiLU of its input if there is a norm.

    shortcut: adds the input too, with its channels repeated, or averaged in groups, to as many as the output has.
    """

    conv: nn.Module
    norm: nn.Module | None = None
    shortcut: bool = False


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
    """x + out(attention over all positions of norm(x)); the projections are 1x1 convolutions or linear.

    reach: over those of the "frame", also of the "past" ones, or of the whole "video".
    """

    norm: nn.Module
    query: nn.Module
    key: nn.Module
    value: nn.Module
    out: nn.Module
    heads: int
    reach: str = "frame"


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
    """A function of a map that also depends on `halo` rows above and below each row.

    widths: channels of its input and output. up, down: factors of its resolution; if it is reduced, an odd last row or
    column is left out, and the halo is a multiple of the factor.
    """

    function: Callable[[Tensor], Tensor]
    halo: int
    widths: tuple[int, int]
    up: int = 1
    down: int = 1


@dataclass(frozen=True)
class Quantization:
    """Each pixel -> the nearest of `codes` codes."""

    quantizer: Quantizer
    codes: int


@dataclass(frozen=True)
class FramesUp:
    """Two frames from each frame after the first: the halves of a causal convolution's channels."""

    conv: nn.Module


@dataclass(frozen=True)
class FramesDown:
    """The first frame, then one from every two frames and the one before them, by a convolution over time."""

    conv: nn.Module


@dataclass(frozen=True)
class VideoConvolution:
    """Over a frame and the two before it, or its neighbours if it looks ahead; the first and the last are repeated.

    padding: "replicate" or the convolution's own. stride: in time and in space. early: with a stride of 2 in time, all
    frames of the result but the first one see one frame earlier.
    """

    conv: nn.Module
    ahead: bool
    padding: str
    stride: tuple[int, int] = (1, 1)
    early: bool = False


@dataclass(frozen=True)
class VideoNorm:
    """GroupNorm of several frames together, and SiLU: of the first ones, then of each `later` ones; None: of all."""

    norm: nn.Module
    first: int | None
    later: int


@dataclass(frozen=True)
class Rearrangement:
    """Frames of another number or size, made of pixels of the same place.

    function: (frames (1, C, n, h, w), whether they begin the video) -> (1, D, m, h', w'). widths: C and D.
    up: whether it enlarges. factor: in space. frames: how many are made of each but the first if it enlarges, otherwise
    how many make one; the first is alone.
    """

    function: Callable[[Tensor, bool], Tensor]
    widths: tuple[int, int]
    up: bool = False
    factor: int = 1
    frames: int = 1


@dataclass(frozen=True)
class Rearrange:
    """The rearrangement of its input."""

    how: Rearrangement


@dataclass(frozen=True)
class Fork:
    """Keeps its input for the `Join` with the same rearrangement, which it also reaches by the layers between them."""

    how: Rearrangement


@dataclass(frozen=True)
class Join:
    """x + the rearrangement of the input at its `Fork`."""

    how: Rearrangement


Layer = (
    Convolution
    | ResidualBlock
    | Attention
    | Upsample
    | Downsample
    | Local
    | Quantization
    | FramesUp
    | FramesDown
    | VideoConvolution
    | VideoNorm
    | Rearrange
    | Fork
    | Join
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


class Third(nn.Module):
    """One of the three parts of a convolution's channels: query, key and value in one layer."""

    def __init__(self, conv: nn.Module, part: int):
        super().__init__()
        self.conv, self.part = conv, part
        self.in_channels, self.out_channels = channels(conv)[0], channels(conv)[1] // 3

    def forward(self, band: Tensor) -> Tensor:
        return self.conv(band).chunk(3, 1)[self.part]
