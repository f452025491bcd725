"""The causal networks of Wan and Qwen-Image: videos of 4 n + 1 frames, of which a picture is one.

Wan 2.2 starts with 2x2 patches of the picture, and each of its levels has a shortcut around it.

ComfyUI has the authors' names, in which everything is a sequence; diffusers has its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ..layers import (
    Convolution,
    Downsample,
    Fork,
    FramesDown,
    FramesUp,
    Join,
    Layer,
    Rearrangement,
    Upsample,
    channels,
    unwrapped,
)
from .modules import (
    attention,
    conv3x3,
    convolution,
    convolution_in,
    convolution_out,
    middle,
    norm,
    patched,
    pointwise,
    require,
    residual_block,
    unpatched,
)

PATCH_CHANNELS = 12


def fits(autoencoder: Any) -> bool:
    """Whether its first convolution pads by itself before the first frame."""
    network = getattr(autoencoder, "decoder", None)
    first: Any = getattr(network, "conv1", getattr(network, "conv_in", None))
    return hasattr(unwrapped(first), "_padding")


def encoder(autoencoder: Any) -> Iterator[Layer]:
    network = autoencoder.encoder
    first = _first(network)
    if channels(first.conv)[0] == PATCH_CHANNELS:
        _require_patches(autoencoder)
        yield patched(PATCH_CHANNELS, 2)
    yield first
    for level in network.downsamples if _has_sequences(network) else network.down_blocks:
        yield from _level(level)
    yield from _middle(network)
    yield _last(network)
    yield Convolution(pointwise(autoencoder.conv1 if _has_sequences(network) else autoencoder.quant_conv))


def decoder(autoencoder: Any) -> Iterator[Layer]:
    network = autoencoder.decoder
    yield Convolution(pointwise(autoencoder.conv2 if _has_sequences(network) else autoencoder.post_quant_conv))
    yield _first(network)
    yield from _middle(network)
    for level in network.upsamples if _has_sequences(network) else network.up_blocks:
        yield from _level(level)
    last = _last(network)
    yield last
    if channels(last.conv)[1] == PATCH_CHANNELS:
        _require_patches(autoencoder)
        yield unpatched(PATCH_CHANNELS, 2)


def _require_patches(autoencoder: Any) -> None:
    require(getattr(getattr(autoencoder, "config", None), "patch_size", 2) == 2)


def _has_sequences(network: Any) -> bool:
    """Whether the names are the authors'."""
    return hasattr(network, "head")


def _first(network: Any) -> Convolution:
    return Convolution(conv3x3(network.conv1)) if _has_sequences(network) else convolution_in(network)


def _last(network: Any) -> Convolution:
    if not _has_sequences(network):
        return convolution_out(network)
    before, activation, conv = network.head
    require(isinstance(activation, nn.SiLU))
    return Convolution(conv3x3(conv), norm(before))


def _middle(network: Any) -> Iterator[Layer]:
    if not _has_sequences(network):
        yield from middle(network)
        return
    for block in network.middle:
        yield from _level(block)


def _level(level: Any) -> Iterator[Layer]:
    """A block, or the blocks of one resolution and its resampling."""
    if hasattr(level, "resample"):
        yield from _resampling(level)
    elif hasattr(level, "to_qkv"):
        yield attention(level)
    elif hasattr(level, "residual") or hasattr(level, "conv1"):
        yield residual_block(level)
    else:
        shortcut = getattr(level, "avg_shortcut", None)
        around = None if shortcut is None else _around(shortcut)
        if around is not None:
            yield Fork(around)
        for block in _blocks(level):
            yield from _level(block)
        if around is not None:
            yield Join(around)


def _blocks(level: Any) -> Iterator[Any]:
    """All that is in a level, the resampling last."""
    for name in ("resnets", "downsamples", "upsamples", "upsamplers"):
        yield from getattr(level, name, None) or ()
    for name in ("downsampler", "upsampler"):
        if getattr(level, name, None) is not None:
            yield getattr(level, name)


def _around(shortcut: Any) -> Rearrangement:
    """Without weights: means of groups of channels of 2x2 patches (down), or repeated channels (up)."""
    up = hasattr(shortcut, "repeats")
    require(not list(shortcut.parameters()) and up != hasattr(shortcut, "group_size"))
    function = shortcut if up else lambda frames, _: shortcut(frames)
    widths = shortcut.in_channels, shortcut.out_channels
    return Rearrangement(function, widths, up, shortcut.factor_s, shortcut.factor_t)


def _resampling(block: Any) -> Iterator[Layer]:
    """In space, and in time before it (up) or after it (down)."""
    require(block.mode in ("upsample2d", "upsample3d", "downsample2d", "downsample3d"))
    first, conv = block.resample
    if block.mode.startswith("up"):
        require(isinstance(first, nn.Upsample) and first.mode == "nearest-exact")
        if block.mode == "upsample3d":
            yield FramesUp(convolution(block.time_conv, (3, 1, 1), 1, 0))
        yield Upsample(conv3x3(conv))
    else:
        require(isinstance(first, nn.ZeroPad2d) and first.padding == (0, 1, 0, 1))
        yield Downsample(conv3x3(conv, stride=2, padding=0))
        if block.mode == "downsample3d":
            yield FramesDown(convolution(block.time_conv, (3, 1, 1), (2, 1, 1), 0))
