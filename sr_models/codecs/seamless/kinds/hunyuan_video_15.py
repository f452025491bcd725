"""HunyuanVideo 1.5, in ComfyUI and diffusers: channels become pixels and frames, beside shortcuts that do the same.

Videos have 4 n + 1 frames, of which a picture is one. Attention sees the whole video in ComfyUI, no later frames in
diffusers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..convolve import rewidened
from ..layers import Fork, Join, Layer, Rearrange, Rearrangement, channels
from .modules import blocks_of, changes, levels, pointwise, require
from .video import Shortcut, activated, middle, replicated, residual_block


def fits(autoencoder: Any) -> bool:
    """Whether its decoder wraps its convolutions, and norms each pixel."""
    network = getattr(autoencoder, "decoder", None)
    return hasattr(getattr(network, "conv_in", None), "conv") and hasattr(getattr(network, "norm_out", None), "gamma")


def encoder(autoencoder: Any) -> Iterator[Layer]:
    network = autoencoder.encoder
    yield replicated(network.conv_in)
    for level in levels(network, "down"):
        yield from _level(level)
    yield from _middle(network)
    yield from _beside(network.conv_out, activated(network.norm_out, nn.SiLU(), _widths(network.conv_out)[0]))


def decoder(autoencoder: Any) -> Iterator[Layer]:
    network = autoencoder.decoder
    yield from _beside(network.conv_in)
    yield from _middle(network)
    for level in levels(network, "up"):
        yield from _level(level)
    yield activated(network.norm_out, nn.SiLU(), _widths(network.conv_out)[0])
    yield replicated(network.conv_out)


def _beside(conv: Any, *before: Layer) -> Iterator[Layer]:
    """The first or last convolution, and a shortcut with channels repeated or averaged."""
    widths = _widths(conv)
    around = Rearrangement(lambda frames, _: rewidened(frames, widths[1]), widths)
    yield Fork(around)
    yield from before
    yield replicated(conv)
    yield Join(around)


def _middle(network: Any) -> Iterator[Layer]:
    # Hunyuan Image's refiner in diffusers has the same names, and takes every frame for the first one.
    for attended in () if hasattr(network, "mid") else network.mid_block.attentions:
        require(attended is None or hasattr(attended, "prepare_causal_attention_mask"))
    yield from middle(network, _residual_block)


def _level(level: Any) -> Iterator[Layer]:
    for block in blocks_of(level):
        yield from _residual_block(block)
    for name, resampling in (("downsample", _down), ("upsample", _up)):
        for change in changes(level, name):
            yield from resampling(change)


def _residual_block(block: Any) -> Iterator[Layer]:
    shortcut = getattr(block, "nin_shortcut", getattr(block, "conv_shortcut", None))
    if shortcut is not None:
        pointwise(getattr(shortcut, "conv", shortcut))
    activation = block.swish if hasattr(block, "swish") else block.nonlinearity
    yield from residual_block(block, activation, Shortcut(None, shortcut), replicated)


def _down(block: Any) -> Iterator[Layer]:
    """ComfyUI's names are short: whether it changes the frames, and the size of a group of channels."""
    width_in, hidden = _widths(block.conv)
    time = 2 if _either(block, "tds", "add_temporal_downsample") else 1
    width, group = 4 * time * hidden, _either(block, "gs", "group_size")
    around = Rearrangement(ToChannels(time, group), (width_in, width), factor=2, frames=time)
    yield Fork(around)
    yield replicated(block.conv)
    yield Rearrange(Rearrangement(ToChannels(time, 1), (hidden, width), factor=2, frames=time))
    yield Join(around)


def _up(block: Any) -> Iterator[Layer]:
    """diffusers repeats channels after they became pixels, if also frames are made."""
    width_in, hidden = _widths(block.conv)
    time = 2 if _either(block, "tus", "add_temporal_upsample") else 1
    width, repeats = hidden // (4 * time), _either(block, "rp", "repeats")
    function = Repeated(time, repeats, hasattr(block, "repeats") and time > 1)
    around = Rearrangement(function, (width_in, width), True, factor=2, frames=time)
    yield Fork(around)
    yield replicated(block.conv)
    yield Rearrange(Rearrangement(ToPixels(time), (hidden, width), True, factor=2, frames=time))
    yield Join(around)


def _either(block: Any, short: str, long: str) -> Any:
    return getattr(block, short) if hasattr(block, short) else getattr(block, long)


@dataclass(frozen=True)
class ToChannels:
    """Of 2x2 pixels of one or two frames, the channels of one pixel, averaged in groups. The first frame is alone: its
    channels come twice, or their groups are half as large."""

    time: int
    group: int

    def __call__(self, frames: Tensor, first: bool) -> Tensor:
        alone = first and self.time > 1
        blocks = frames.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 1 if alone else self.time))
        packed = blocks.permute(0, 3, 5, 7, 1, 2, 4, 6).flatten(1, 4)
        if alone and self.group == 1:
            return packed.repeat(1, 2, 1, 1, 1)
        return packed.unflatten(1, (-1, self.group // 2 if alone else self.group)).mean(2)


@dataclass(frozen=True)
class ToPixels:
    """The inverse: of the channels of a pixel, 2x2 pixels of one or two frames; of the first, only half of them."""

    time: int

    def __call__(self, frames: Tensor, first: bool) -> Tensor:
        alone = first and self.time > 1
        pixels = spread(frames, 1 if alone else self.time)
        return pixels[:, : pixels.shape[1] // 2] if alone else pixels


@dataclass(frozen=True)
class Repeated:
    """The same without a convolution before it: channels are repeated to as many as are needed."""

    time: int
    repeats: int
    afterwards: bool

    def __call__(self, frames: Tensor, first: bool) -> Tensor:
        alone = first and self.time > 1
        time, repeats = (1, self.repeats // 2) if alone else (self.time, self.repeats)
        if self.afterwards:
            return spread(frames, time).repeat_interleave(repeats, 1)
        return spread(frames.repeat_interleave(repeats, 1), time)


def spread(frames: Tensor, time: int) -> Tensor:
    """(1, 4 t C, n, h, w) -> (1, C, t n, 2h, 2w)."""
    pixels = frames.unflatten(1, (time, 2, 2, -1)).permute(0, 4, 5, 1, 6, 2, 7, 3)
    return pixels.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _widths(module: Any) -> tuple[int, int]:
    return channels(module.conv)
