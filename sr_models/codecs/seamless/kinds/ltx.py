"""LTX-Video and LTX-2 without a timestep, in ComfyUI and diffusers: the decoder also sees the next frame.

Videos have 8 n + 1 frames, of which a picture is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn

from ..layers import Fork, Join, Layer, Local, Rearrange, Rearrangement, VideoConvolution, channels, unwrapped
from .modules import patched, require, unpatched
from .video import STRIDES, Shortcut, activated, residual_block


def fits(autoencoder: Any) -> bool:
    """Whether its decoder makes patches, and wraps its convolutions to repeat frames."""
    network = getattr(autoencoder, "decoder", None)
    return hasattr(network, "patch_size") and hasattr(getattr(network, "conv_in", None), "conv")


def encoder(autoencoder: Any) -> Iterator[Layer]:
    network = autoencoder.encoder
    require(not _looks_ahead(network))
    yield patched(_widths(network.conv_in)[0], network.patch_size)
    yield from _network(network, network.down_blocks, False)
    statistics = getattr(autoencoder, "per_channel_statistics", None)
    if statistics is not None:
        widths = _widths(network.conv_out)[1], _widths(autoencoder.decoder.conv_in)[0]
        yield Local(Mean(statistics, widths[1]), 0, widths)


def decoder(autoencoder: Any) -> Iterator[Layer]:
    network, statistics = autoencoder.decoder, getattr(autoencoder, "per_channel_statistics", None)
    if statistics is not None:
        width = _widths(network.conv_in)[0]
        yield Local(Scaled(statistics), 0, (width, width))
    yield from _network(network, network.up_blocks, _looks_ahead(network))
    yield unpatched(_widths(network.conv_out)[1], network.patch_size)


@dataclass(frozen=True)
class Mean:
    """The mean of the posterior without the statistics of each channel, which in diffusers a pipeline removes."""

    statistics: Any
    width: int

    def __call__(self, moments: Tensor) -> Tensor:
        return self.statistics.normalize(moments[:, : self.width].unsqueeze(2)).squeeze(2)


@dataclass(frozen=True)
class Scaled:
    """The inverse of `Mean`."""

    statistics: Any

    def __call__(self, latent: Tensor) -> Tensor:
        return self.statistics.un_normalize(latent.unsqueeze(2)).squeeze(2)


def _looks_ahead(network: Any) -> bool:
    """ComfyUI's encoder does not say that it is causal; in diffusers, the convolutions may say it alone."""
    causal = getattr(network, "causal", getattr(network, "is_causal", None))
    return not (getattr(network.conv_in, "is_causal", True) if causal is None else causal)


def _network(network: Any, levels: Any, ahead: bool) -> Iterator[Layer]:
    """The middle is at the end that has the lowest resolution."""
    middle = [network.mid_block] if hasattr(network, "mid_block") else []
    yield _convolution(network.conv_in, ahead)
    for block in (*middle, *levels) if hasattr(network, "up_blocks") else (*levels, *middle):
        yield from _block(block, ahead)
    norm = network.conv_norm_out if hasattr(network, "conv_norm_out") else network.norm_out
    yield activated(norm, network.conv_act, _widths(network.conv_out)[0])
    yield _convolution(network.conv_out, ahead)


def _block(block: Any, ahead: bool) -> Iterator[Layer]:
    if hasattr(block, "conv1"):
        activation = getattr(block, "non_linearity", None) or block.nonlinearity
        shortcut = Shortcut(block.norm3, block.conv_shortcut)
        yield from residual_block(block, activation, shortcut, lambda module: _convolution(module, ahead))
    elif hasattr(block, "group_size"):
        yield from _downsample(block)
    elif hasattr(block, "residual"):
        yield from _upsample(block, ahead)
    elif hasattr(block, "conv"):
        yield _convolution(block, ahead)
    else:
        for part in _parts(block):
            yield from _block(part, ahead)


def _parts(level: Any) -> Iterator[Any]:
    """All that is in a level or the middle, in its order."""
    if getattr(level, "conv_in", None) is not None:
        yield level.conv_in
    for name in ("upsamplers", "resnets", "res_blocks", "downsamplers"):
        yield from getattr(level, name, None) or ()
    if getattr(level, "conv_out", None) is not None:
        yield level.conv_out


def _downsample(block: Any) -> Iterator[Layer]:
    width_in, width_hidden = _widths(block.conv)
    size, width = tuple(block.stride), width_hidden * prod(block.stride)
    around = _rearrangement(ToChannels(size, block.group_size), (width_in, width))
    yield Fork(around)
    yield _convolution(block.conv, False)
    yield Rearrange(_rearrangement(ToChannels(size, 1), (width_hidden, width)))
    yield Join(around)


def _upsample(block: Any, ahead: bool) -> Iterator[Layer]:
    width_in, width_hidden = _widths(block.conv)
    size, width = tuple(block.stride), width_hidden // prod(block.stride)
    around = _rearrangement(ToPixels(size, width * prod(size) // width_in), (width_in, width))
    if block.residual:
        yield Fork(around)
    yield _convolution(block.conv, ahead)
    yield Rearrange(_rearrangement(ToPixels(size, 1), (width_hidden, width)))
    if block.residual:
        yield Join(around)


def _rearrangement(function: ToChannels | ToPixels, widths: tuple[int, int]) -> Rearrangement:
    frames, factor, same = function.size
    require(factor == same)
    return Rearrangement(function, widths, isinstance(function, ToPixels), factor, frames)


@dataclass(frozen=True)
class ToPixels:
    """Of the channels of a pixel, a block of this size, and then that `repeats` times; in time, the first one is
    left out."""

    size: tuple[int, ...]
    repeats: int

    def __call__(self, frames: Tensor, first: bool) -> Tensor:
        blocks = frames.unflatten(1, (-1, *self.size)).permute(0, 1, 5, 2, 6, 3, 7, 4)
        pixels = blocks.flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return pixels[:, :, self.size[0] - 1 if first else 0 :].repeat(1, self.repeats, 1, 1, 1)


@dataclass(frozen=True)
class ToChannels:
    """Of a block of this size, the channels of one pixel, averaged in groups; in time, the first frame comes twice."""

    size: tuple[int, ...]
    group: int

    def __call__(self, frames: Tensor, first: bool) -> Tensor:
        frames = frames.repeat_interleave(self.size[0], 2) if first else frames
        blocks = (
            frames.unflatten(4, (-1, self.size[2])).unflatten(3, (-1, self.size[1])).unflatten(2, (-1, self.size[0]))
        )
        return blocks.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4).unflatten(1, (-1, self.group)).mean(2)


def _convolution(module: Any, ahead: bool) -> VideoConvolution:
    conv = unwrapped(module.conv)
    require(isinstance(conv, nn.Conv3d) and conv.stride in STRIDES and (conv.stride[0] == 1 or not ahead))
    require((conv.kernel_size, conv.padding, conv.dilation) == ((3, 3, 3), (0, 1, 1), (1, 1, 1)))
    return VideoConvolution(module.conv, ahead, conv.padding_mode, (conv.stride[0], conv.stride[1]))


def _widths(module: Any) -> tuple[int, int]:
    return channels(module.conv)
