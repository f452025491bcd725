"""What the networks for videos share, whose convolutions repeat the first frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Fork, Join, Layer, Local, Rearrangement, VideoConvolution, channels, unwrapped
from .modules import attention, norm, require

STRIDES = {(1, 1, 1), (1, 2, 2), (2, 1, 1), (2, 2, 2)}


class Shortcut(nn.Module):
    """Of a residual block: a norm and a 1x1 convolution if the number of channels changes."""

    def __init__(self, norm: nn.Module | None, conv: nn.Module | None):
        super().__init__()
        self.norm, self.conv = norm, conv

    def forward(self, frames: Tensor, _: bool) -> Tensor:
        frames = frames if self.norm is None else _normalised(self.norm, frames)
        return frames if self.conv is None else self.conv(frames)


class Activation(nn.Module):
    """A norm over the channels of each pixel, and SiLU."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, band: Tensor) -> Tensor:
        return F.silu(_normalised(self.norm, band.unsqueeze(2)).squeeze(2))


def activated(module: Any, activation: Any, width: int) -> Local:
    require(isinstance(activation, nn.SiLU))
    _require_per_pixel(module)
    return Local(Activation(module), 0, (width, width))


def residual_block(
    block: Any,
    activation: Any,
    shortcut: Shortcut,
    convolution: Callable[[Any], VideoConvolution],
    activate: Callable[[Any, Any, int], Layer] = activated,
) -> Iterator[Layer]:
    """activate: of a norm, the activation and their width, the layer for both."""
    first, second = convolution(block.conv1), convolution(block.conv2)
    width_in, width = channels(first.conv)
    around = Rearrangement(shortcut, (width_in, width))
    yield Fork(around)
    yield activate(block.norm1, activation, width_in)
    yield first
    yield activate(block.norm2, activation, width)
    yield second
    yield Join(around)


def middle(network: Any, residual_block: Callable[[Any], Iterator[Layer]]) -> Iterator[Layer]:
    """Residual blocks with an attention between each two: to the whole video in ComfyUI, to no later frames in
    diffusers."""
    if hasattr(network, "mid"):
        blocks, attends, reach = (network.mid.block_1, network.mid.block_2), [network.mid.attn_1], "video"
    else:
        blocks, attends, reach = network.mid_block.resnets, network.mid_block.attentions, "past"
    for block, attended in zip(blocks, (None, *attends), strict=True):
        if attended is not None:
            yield replace(attention(attended), reach=reach)
        yield from residual_block(block)


def _require_per_pixel(module: Any) -> None:
    if hasattr(module, "gamma"):
        norm(module)
        return
    inner = getattr(module, "norm", None)  # ComfyUI's LayerNorm of channels
    along = getattr(module, "dim", getattr(module, "channel_dim", None))
    require(_is_channels_last(module) or isinstance(inner, nn.LayerNorm) or along == 1)


def _is_channels_last(norm: Any) -> bool:
    return isinstance(norm, nn.LayerNorm) or isinstance(getattr(norm, "dim", None), torch.Size)


def _normalised(norm: nn.Module, frames: Tensor) -> Tensor:
    return norm(frames.movedim(1, -1)).movedim(-1, 1) if _is_channels_last(norm) else norm(frames)


def replicated(module: Any) -> VideoConvolution:
    """A wrapped convolution, in front of which the first frame and the borders are repeated."""
    conv = unwrapped(module.conv)
    mode = getattr(module, "pad_mode", getattr(module, "padding_mode", "replicate"))
    require(isinstance(conv, nn.Conv3d) and conv.stride in STRIDES and mode == "replicate")
    require((conv.kernel_size, conv.padding, conv.dilation) == ((3, 3, 3), (0, 0, 0), (1, 1, 1)))
    return VideoConvolution(module.conv, False, "replicate", (conv.stride[0], conv.stride[1]))
