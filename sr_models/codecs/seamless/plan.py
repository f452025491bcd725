"""The sizes and memory of each layer of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ...errors import UserError
from .layers import (
    Attention,
    Convolution,
    Downsample,
    Fork,
    FramesDown,
    FramesUp,
    Join,
    Layer,
    Local,
    Quantization,
    Rearrange,
    Rearrangement,
    ResidualBlock,
    Upsample,
    VideoConvolution,
    VideoNorm,
    channels,
    is_causal,
    unwrapped,
)
from .maps import Store, megabytes

SIDE_TO_REFLECT = 2
COMFORTABLE_ROWS = 16  # the two halo rows then cost an extra eighth
COPIES_OF_FRAMES = 9  # three frames, padded and in the convolution kernel's layout
COPIES_OF_REARRANGEMENT = 4  # the frames, in patches or repeated, their rearrangement, and a sum
COPIES_OF_LOCAL = 8  # input, two maps of the work, both in the convolution kernel's layout, and the result
TEMPORARY_WIDTHS = 16  # row widths of temporary float32 blocks in attention


@dataclass(frozen=True)
class Stage:
    """A layer and the size of its input map."""

    layer: Layer
    height: int
    width: int
    frames: int = 1

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the output map."""
        (up, down), rest = self._factors, 0
        if isinstance(self.layer, VideoConvolution) or (isinstance(self.layer, Downsample) and self.layer.centred):
            rest = down - 1  # an odd side is rounded up
        return (self.height + rest) // down * up, (self.width + rest) // down * up

    @property
    def _factors(self) -> tuple[int, int]:
        """By which the resolution is multiplied and divided."""
        match self.layer:
            case Upsample():
                return 2, 1
            case Downsample():
                return 1, 2
            case Local(up=up, down=down):
                return up, down
            case VideoConvolution(stride=(_, stride)):
                return 1, stride
            case Rearrange(how):
                return (how.factor, 1) if how.up else (1, how.factor)
        return 1, 1

    @property
    def is_too_small(self) -> bool:
        """Whether the layer has nothing to compute, or nothing to reflect at the border."""
        reflects = isinstance(self.layer, VideoConvolution) and self.layer.padding == "reflect"
        return min(self.output) < 1 or (reflects and min(self.height, self.width) < SIDE_TO_REFLECT)

    @property
    def rows_of_work(self) -> int:
        """Total number of rows written in all bands."""
        if isinstance(self.layer, FramesUp | FramesDown):
            return (self.frames - 1) * self.height
        if isinstance(self.layer, Fork):
            return 0
        passes = 2 if isinstance(self.layer, ResidualBlock | Attention) else 1
        return passes * self.output[0] * self.frames_out

    @property
    def frames_out(self) -> int:
        """Frames of the output; the first one stands for itself."""
        match self.layer:
            case FramesUp() | Rearrange(Rearrangement(up=True, frames=2)):
                return 2 * self.frames - 1
            case FramesDown() | Rearrange(Rearrangement(up=False, frames=2)) | VideoConvolution(stride=(2, _)):
                return (self.frames + 1) // 2
        return self.frames

    @property
    def elements_per_row(self) -> int:
        """The largest number of elements alive at once for one output row of a band, in any pass.

        Three times the input (as read, normalised, in the convolution kernel's layout), three times the output. Causal
        convolutions read three frames.
        """
        elements = 0
        match self.layer:
            case Convolution(conv, shortcut=True):
                elements = _copies(conv) + sum(channels(conv))
            case Convolution(conv) | FramesUp(conv) | FramesDown(conv):
                elements = _copies(conv)
            case ResidualBlock(conv1=conv1, conv2=conv2, shortcut=shortcut):
                beside = 2 * channels(conv2 if shortcut is None else conv1)[0]
                elements = max(_copies(conv1), _copies(conv2) + beside)
            case Upsample(conv):
                elements = 3 * sum(channels(conv)) * 2
            case Downsample(conv):
                elements = 6 * channels(conv)[0] + 2 * channels(conv)[1]
            case Local(widths=(width_in, width_out), up=up, down=down):
                elements = COPIES_OF_LOCAL * max(width_in * down // up, width_out * up // down)
            case VideoConvolution(conv, stride=(_, stride)):
                elements = COPIES_OF_FRAMES * channels(conv)[0] * stride + 3 * channels(conv)[1]
            case VideoNorm(norm):
                elements = 3 * unwrapped(norm).num_channels
            case Rearrange(how):
                elements = _rearranged(how) * how.factor if how.up else -(-_rearranged(how) // how.factor)
            case Join(how):
                elements = _rearranged(how)
            case Attention(query=query):
                elements = TEMPORARY_WIDTHS * channels(query)[0]
            case Quantization(codes=codes):
                elements = 4 * codes
        return elements * self.width

    @property
    def attended_elements(self) -> int:
        """Elements of the maps that attention reads at every position: its input, keys and values."""
        if not isinstance(self.layer, Attention):
            return 0
        frames = 1 if self.layer.reach == "frame" else self.frames
        return 3 * channels(self.layer.query)[0] * self.height * self.width * frames

    def bytes_for(self, rows: int, dtype: torch.dtype) -> int:
        """Memory for the work on a band of this many rows and its halo."""
        return (min(rows, self.output[0]) + 2 * self.halo) * self.elements_per_row * dtype.itemsize

    @property
    def halo(self) -> int:
        """Rows above and below a band that its output depends on, at most."""
        match self.layer:
            case Local(halo=halo, up=up, down=down):
                return max(1, halo * up // down)
        return 1


def _copies(conv: nn.Module) -> int:
    """Elements per pixel of the output for a convolution and what it reads and writes."""
    width_in, width_out = channels(conv)
    return (COPIES_OF_FRAMES if is_causal(conv) else 3) * width_in + 3 * width_out


def _rearranged(how: Rearrangement) -> int:
    """Elements per pixel of the output."""
    width_in, width_out = how.widths
    area = how.factor**2
    return COPIES_OF_REARRANGEMENT * how.frames * max(width_in // area if how.up else width_in * area, width_out)


def stages(layers: list[Layer], height: int, width: int, frames: int = 1) -> list[Stage]:
    result: list[Stage] = []
    for layer in layers:
        result.append(Stage(layer, height, width, frames))
        (height, width), frames = result[-1].output, result[-1].frames_out
    return result


def needed_frames(plan: list[Stage]) -> int:
    """Frames of the input that make those of the output; further ones are too few for another."""
    frames = plan[-1].frames_out
    for stage in reversed(plan):
        if stage.frames_out > stage.frames:
            frames = (frames + 1) // 2
        elif stage.frames_out < stage.frames:
            frames = 2 * frames - 1
    return frames


def comfortable_budget(plan: list[Stage], dtype: torch.dtype) -> int:
    """The budget in bytes with which bands are not too thin, and attention finds its maps on the device.

    All other maps are read and written once per layer, so that host memory is nearly as good for them.
    """
    attended = max(stage.attended_elements for stage in plan) * dtype.itemsize
    return attended + max(stage.bytes_for(COMFORTABLE_ROWS, dtype) for stage in plan)


def make_store(plan: list[Stage], device: torch.device, dtype: torch.dtype, budget: int, spill: Path | None) -> Store:
    """Raises UserError if the budget is too small for a band of two rows, even with all maps elsewhere."""
    needed = max(stage.bytes_for(2, dtype) for stage in plan)
    if needed > budget:
        raise UserError(
            f"A memory budget of {budget // 2**20} MB is too small for the VAE at this picture's width: use at "
            f"least {megabytes(needed)} MB."
        )
    return Store(device, dtype, budget, max(stage.bytes_for(COMFORTABLE_ROWS, dtype) for stage in plan), spill)
