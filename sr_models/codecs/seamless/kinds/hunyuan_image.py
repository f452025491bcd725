"""Hunyuan Image 2.1, in ComfyUI and diffusers: channels become pixels and pixels channels, beside shortcuts that do the
same without weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..layers import Layer, Local, channels
from .modules import conv3x3, convolution_in, convolution_out, levels, middle, require, residual_block


def fits(autoencoder: Any) -> bool:
    """Whether its decoder remembers both widths that the shortcut around its first convolution connects."""
    network = getattr(autoencoder, "decoder", None)
    return hasattr(network, "z_channels") and hasattr(network, "block_out_channels")


def encoder(autoencoder: Any) -> Iterator[Layer]:
    network = autoencoder.encoder
    yield convolution_in(network)
    for level in levels(network, "down"):
        yield from _level(level)
    yield from middle(network)
    yield replace(convolution_out(network), shortcut=True)


def decoder(autoencoder: Any) -> Iterator[Layer]:
    network = autoencoder.decoder
    yield replace(convolution_in(network), shortcut=True)
    yield from middle(network)
    for level in levels(network, "up"):
        yield from _level(level)
    yield convolution_out(network)


def _level(level: Any) -> Iterator[Layer]:
    """A block, a change of resolution, or in ComfyUI the blocks of one resolution and its change."""
    if hasattr(level, "conv1"):
        require(getattr(level, "conv_shortcut", None) is None)  # diffusers convolves the wrong summand
        yield residual_block(level)
    elif hasattr(level, "conv"):
        yield _resampling(level)
    else:
        changes = (getattr(level, name) for name in ("downsample", "upsample") if hasattr(level, name))
        for block in (*level.block, *changes):
            yield from _level(block)


def _resampling(block: Any) -> Local:
    """The block itself has the convolution and the shortcut."""
    width_in, width = channels(conv3x3(block.conv))
    if hasattr(block, "repeats") or hasattr(block, "scale"):
        return Local(block, 1, (width_in, width // 4), up=2)
    require(hasattr(block, "group_size") or hasattr(block, "ratio"))
    return Local(block, 2, (width_in, 4 * width), down=2)
