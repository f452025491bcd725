"""HunyuanVideo 1.0, in ComfyUI and diffusers: norms over several frames and attention over the whole video.

Videos have 4 n + 1 frames, of which a picture is one. diffusers norms all frames of a map together, and its attention
sees no later ones. ComfyUI norms the groups in which frames pass, except in the middle, and where its encoder halves
their number, each but the first sees one frame earlier.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..layers import Convolution, Layer, Rearrange, Rearrangement, VideoNorm, channels
from .modules import blocks_of, changes, levels, norm, pointwise, require
from .video import Shortcut, middle, replicated, residual_block

LATENTS_TOGETHER = 2  # in ComfyUI


@dataclass(frozen=True)
class Together:
    """How many frames are normed together: the first ones, and later ones each time; None: all."""

    first: int | None = None
    later: int = 0

    def halved(self) -> Together:
        return replace(self, later=self.later // 2)

    def doubled(self) -> Together:
        return replace(self, first=self.first and 2 * self.first - 1, later=2 * self.later)

    def norm(self, module: Any, activation: Any) -> VideoNorm:
        require(isinstance(activation, nn.SiLU) and isinstance(norm(module), nn.GroupNorm))
        return VideoNorm(module, self.first, self.later)


def fits(autoencoder: Any) -> bool:
    """Whether its decoder wraps its convolutions, and norms groups of channels."""
    network = getattr(autoencoder, "decoder", None)
    last = getattr(network, "conv_norm_out", getattr(network, "norm_out", None))
    return hasattr(getattr(network, "conv_in", None), "conv") and isinstance(last, nn.GroupNorm)


def encoder(autoencoder: Any) -> Iterator[Layer]:
    network = autoencoder.encoder
    together = Together(1, 2 * network.time_compress) if getattr(network, "carried", False) else Together()
    yield replicated(network.conv_in)
    for level in levels(network, "down"):
        yield from _blocks(level, together)
        for change in changes(level, "downsample"):
            down = replicated(change.conv)
            if down.stride[0] > 1:
                down, together = replace(down, early=together.first is not None), together.halved()
            yield down
    yield from middle(network, partial(_residual_block, together=Together()))
    yield from _out(network, Together())
    yield Convolution(pointwise(autoencoder.quant_conv))


def decoder(autoencoder: Any) -> Iterator[Layer]:
    network = autoencoder.decoder
    together = Together(LATENTS_TOGETHER, LATENTS_TOGETHER) if getattr(network, "carried", False) else Together()
    yield Convolution(pointwise(autoencoder.post_quant_conv))
    yield replicated(network.conv_in)
    yield from middle(network, partial(_residual_block, together=Together()))
    for level in network.up_blocks if hasattr(network, "up_blocks") else reversed(network.up):
        yield from _blocks(level, together)
        for change in changes(level, "upsample"):
            nearest = _nearest(change)
            together = together.doubled() if nearest.how.frames > 1 else together
            yield nearest
            yield replicated(change.conv)
    yield from _out(network, together)


def _out(network: Any, together: Together) -> Iterator[Layer]:
    before = network.conv_norm_out if hasattr(network, "conv_norm_out") else network.norm_out
    yield together.norm(before, getattr(network, "conv_act", nn.SiLU()))
    yield replicated(network.conv_out)


def _blocks(level: Any, together: Together) -> Iterator[Layer]:
    require(not list(getattr(level, "attn", ())))
    for block in blocks_of(level):
        yield from _residual_block(block, together)


def _residual_block(block: Any, together: Together) -> Iterator[Layer]:
    shortcut = getattr(block, "nin_shortcut", getattr(block, "conv_shortcut", None))
    if shortcut is not None:
        pointwise(shortcut.conv)
    activation = block.swish if hasattr(block, "swish") else block.nonlinearity
    activate = lambda module, activation, _: together.norm(module, activation)  # noqa: E731
    yield from residual_block(block, activation, Shortcut(None, shortcut), replicated, activate)


def _nearest(block: Any) -> Rearrange:
    """x2 in space, and in time for all frames but the first."""
    factors = block.upsample_factor if hasattr(block, "upsample_factor") else block.scale_factor
    time, height, width = factors if isinstance(factors, tuple) else (factors,) * 3
    require((height, width) == (2, 2) and time in (1, 2))
    wide = channels(block.conv.conv)[0]
    return Rearrange(Rearrangement(Nearest(int(time)), (wide, wide), True, factor=2, frames=int(time)))


@dataclass(frozen=True)
class Nearest:
    time: int

    def __call__(self, frames: Tensor, first: bool) -> Tensor:
        frames = frames if first else frames.repeat_interleave(self.time, 2)
        return frames.repeat_interleave(2, 3).repeat_interleave(2, 4)
