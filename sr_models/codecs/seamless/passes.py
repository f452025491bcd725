"""Run a list of layers over maps, band by band.

A convolution gets a band with one extra row above and below where the map has them, so its zero padding only affects
the map's true border; rows computed from padding elsewhere are cropped. Statistics of a GroupNorm are measured while
its input map is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError
from .layers import (
    Attention,
    Convolution,
    Downsample,
    Layer,
    Quantization,
    ResidualBlock,
    Upsample,
    channels,
    unwrapped,
)
from .maps import FeatureMap, Store, megabytes
from .norm import WholeNorm

Progress = Callable[[int, int], object]

COMFORTABLE_ROWS = 16  # the two halo rows then cost an extra eighth
# CPU allocators reuse blocks of memory up to 32 MB. Larger blocks get new pages every time, which makes elementwise
# operations several times slower. A band is at most six such blocks.
FAST_BAND_ON_CPU = 6 * 20 * 2**20
SCORE_BYTES = 12  # per query and key if attention is not fused: the score, its exponential, and a copy
TEMPORARY_WIDTHS = 16  # row widths of temporary float32 blocks in attention


@dataclass(frozen=True)
class Stage:
    """A layer and the size of its input map."""

    layer: Layer
    height: int
    width: int

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the output map."""
        if isinstance(self.layer, Upsample):
            return 2 * self.height, 2 * self.width
        if isinstance(self.layer, Downsample):
            return self.height // 2, self.width // 2
        return self.height, self.width

    @property
    def rows_of_work(self) -> int:
        """Total number of rows written in all bands."""
        passes = 2 if isinstance(self.layer, ResidualBlock | Attention) else 1
        return passes * self.output[0]

    @property
    def elements_per_row(self) -> int:
        """The largest number of elements alive at once for one output row of a band, in any pass.

        Three times the input (as read, normalised, in the convolution kernel's layout), three times the output.
        """
        match self.layer:
            case Convolution(conv):
                return 3 * sum(channels(conv)) * self.width
            case ResidualBlock(conv1=conv1, conv2=conv2, shortcut=shortcut):
                beside = 2 * channels(conv2 if shortcut is None else conv1)[0]
                return max(3 * sum(channels(conv1)), 3 * sum(channels(conv2)) + beside) * self.width
            case Upsample(conv):
                return 3 * sum(channels(conv)) * 2 * self.width
            case Downsample(conv):
                return (6 * channels(conv)[0] + 2 * channels(conv)[1]) * self.width
            case Attention(query=query):
                return TEMPORARY_WIDTHS * channels(query)[0] * self.width
            case Quantization(codes=codes):
                return 4 * codes * self.width

    @property
    def attended_elements(self) -> int:
        """Elements of the maps that attention reads at every position: its input, keys and values."""
        if not isinstance(self.layer, Attention):
            return 0
        return 3 * channels(self.layer.query)[0] * self.height * self.width

    def bytes_for(self, rows: int, dtype: torch.dtype) -> int:
        """Memory for the work on a band of this many rows, plus two for the halo."""
        return (min(rows, self.output[0]) + 2) * self.elements_per_row * dtype.itemsize


def stages(layers: list[Layer], height: int, width: int) -> list[Stage]:
    result: list[Stage] = []
    for layer in layers:
        result.append(Stage(layer, height, width))
        height, width = result[-1].output
    return result


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


class BandedForward:
    """One picture's forward pass through the layers, band by band."""

    def __init__(self, plan: list[Stage], store: Store, advance: Callable[[int], object]):
        """advance: called after each band with the number of rows of work done."""
        self.plan, self.store, self.advance = plan, store, advance
        self.stage = plan[0]
        self.norm = self.next_norm = WholeNorm(None)  # of the current layer's input and output maps

    def __call__(self, source: FeatureMap, result: FeatureMap) -> None:
        """Read from `source`; the last layer, a convolution, writes to `result`."""
        for stage, following in zip(self.plan, [*self.plan[1:], None], strict=True):
            self.stage, self.norm = stage, self.next_norm
            self.next_norm = WholeNorm(None if following is None else _norm_of(following.layer))
            target = self._layer(source, None if following else result)
            if target is not source:
                self.store.release(source)
            source = target

    def _layer(self, source: FeatureMap, result: FeatureMap | None) -> FeatureMap:
        match self.stage.layer:
            case Convolution(conv):
                target = self._new(channels(conv)[1]) if result is None else result
                self._convolution(conv, source, self.norm, target, self.next_norm)
            case ResidualBlock() as block:
                target = self._residual_block(block, source)
            case Attention() as attention:
                target = self._attention(attention, source)
            case Upsample(conv):
                target = self._new(channels(conv)[1])
                self._upsample(conv, source, target)
            case Downsample(conv):
                target = self._new(channels(conv)[1])
                self._downsample(conv, source, target)
            case Quantization(quantizer):
                target = self._new(quantizer.embedding.embedding_dim)
                self._convolution(quantizer, source, self.norm, target, self.next_norm)
        return target

    def _new(self, width: int) -> FeatureMap:
        return self.store.new(*self.stage.output, width)

    def _bands(self, height: int, step: int = 1) -> Iterator[tuple[int, int]]:
        row = self.stage.elements_per_row * self.store.dtype.itemsize
        rows = max(1, self.store.workspace // row - 2)
        on_cpu = self.store.device.type == "cpu"
        if on_cpu:
            rows = min(rows, max(COMFORTABLE_ROWS, FAST_BAND_ON_CPU // row))
        for top, bottom in even_bands(height, rows, step):
            if on_cpu:
                self.store.heap.make_room((bottom - top + 2) * row)
            yield top, bottom

    def _write(self, target: FeatureMap, top: int, band: Tensor, norm: WholeNorm) -> None:
        norm.measure(band)
        target.write(top, band)
        self.advance(band.shape[2])

    def _convolution(
        self, conv: nn.Module, source: FeatureMap, norm: WholeNorm, target: FeatureMap, next_norm: WholeNorm
    ) -> None:
        for top, bottom in self._bands(source.height):
            self._write(target, top, convolved(conv, source, top, bottom, norm), next_norm)

    def _residual_block(self, block: ResidualBlock, source: FeatureMap) -> FeatureMap:
        """The result overwrites `source` if it has the same number of channels."""
        width_in, width = channels(block.conv1)
        norm = WholeNorm(block.norm2)
        hidden = self._new(width)
        self._convolution(block.conv1, source, self.norm, hidden, norm)
        target = source if width_in == width else self._new(width)
        for top, bottom in self._bands(source.height):
            branch = convolved(block.conv2, hidden, top, bottom, norm)
            kept = source.read(top, bottom)
            branch += kept if block.shortcut is None else block.shortcut(kept)
            self._write(target, top, branch, self.next_norm)
        self.store.release(hidden)
        return target

    def _upsample(self, conv: nn.Module, source: FeatureMap, target: FeatureMap) -> None:
        for top, bottom in self._bands(target.height, step=2):
            above, below = min(1, top), min(1, target.height - bottom)
            small = source.read(top // 2 - above, bottom // 2 + below)
            # A halo row becomes two rows, of which the convolution needs one.
            large = doubled(small)[:, :, above : 2 * small.shape[2] - below]
            self._write(target, top, without_halo(conv(large), above, below), self.next_norm)

    def _downsample(self, conv: nn.Module, source: FeatureMap, target: FeatureMap) -> None:
        for top, bottom in self._bands(target.height):
            band = source.read(2 * top, min(2 * bottom + 1, source.height))
            self._write(target, top, conv(padded(band)), self.next_norm)

    def _attention(self, layer: Attention, source: FeatureMap) -> FeatureMap:
        """Attention from every position to all positions; the result is added in place."""
        keys, values = (self._new(channels(module)[1]) for module in (layer.key, layer.value))
        for top, bottom in self._bands(source.height):
            band = self.norm.apply(source.read(top, bottom))
            keys.write(top, pointwise(layer.key, band))
            self._write(values, top, pointwise(layer.value, band), WholeNorm(None))
        attend = self._attend_whole if keys.resident and values.resident else self._attend_in_blocks
        for top, bottom in self._bands(source.height):
            band = source.read(top, bottom)
            query = positions(pointwise(layer.query, self.norm.apply(band)), layer.heads)
            attended = attend(query, keys, values, layer.heads)
            attended = attended.transpose(1, 2).reshape(1, *band.shape[2:], -1).permute(0, 3, 1, 2)
            self._write(source, top, pointwise(layer.out, attended).add(band), self.next_norm)
        self.store.release(keys)
        self.store.release(values)
        return source

    def _attend_whole(self, query: Tensor, keys: FeatureMap, values: FeatureMap, heads: int) -> Tensor:
        """As many queries at once as fit in memory if the device stores all their scores."""
        key, value = (positions(m.read(0, m.height), heads) for m in (keys, values))
        at_once = max(1, self.store.workspace // 4 // (SCORE_BYTES * heads * key.shape[2]))
        parts = (F.scaled_dot_product_attention(part, key, value) for part in query.split(at_once, dim=2))
        return torch.cat(list(parts), dim=2)

    def _attend_in_blocks(self, query: Tensor, keys: FeatureMap, values: FeatureMap, heads: int) -> Tensor:
        """Softmax over blocks of keys: sums are relative to the largest score so far (float32)."""
        scaled = query.float() * query.shape[-1] ** -0.5
        largest = torch.full_like(scaled[..., :1], -torch.inf)
        total, weighted = torch.zeros_like(largest), torch.zeros_like(scaled)
        row = SCORE_BYTES * heads * query.shape[2] * keys.width
        for top, bottom in even_bands(keys.height, max(1, self.store.workspace // 4 // row)):
            key, value = (positions(m.read(top, bottom), heads).float() for m in (keys, values))
            scores = scaled @ key.transpose(-1, -2)
            before, largest = largest, torch.maximum(largest, scores.amax(-1, keepdim=True))
            scores = scores.sub_(largest).exp_()
            shrunk = (before - largest).exp_()
            total = total * shrunk + scores.sum(-1, keepdim=True)
            weighted = weighted.mul_(shrunk).add_(scores @ value)
        return (weighted / total).to(query.dtype)


def _norm_of(layer: Layer) -> nn.Module | None:
    """The norm that the layer applies to its input."""
    return layer.norm1 if isinstance(layer, ResidualBlock) else getattr(layer, "norm", None)


def even_bands(height: int, rows: int, step: int = 1) -> Iterator[tuple[int, int]]:
    """[top, bottom) of the fewest bands that cover [0, height) with at most `rows` rows each, and at least one step.

    Bands start at multiples of `step`; all but the last have the same number of rows.
    """
    steps = -(-height // step)
    bands = -(-steps // max(1, rows // step))
    size = -(-steps // bands) * step
    for top in range(0, height, size):
        yield top, min(top + size, height)


def convolved(conv: nn.Module, source: FeatureMap, top: int, bottom: int, norm: WholeNorm) -> Tensor:
    """The rows [top, bottom) of conv(silu(norm(source))), or of conv(source): (1, C, bottom - top, W)."""
    halo = getattr(unwrapped(conv), "padding", (0, 0))[0]
    above, below = min(halo, top), min(halo, source.height - bottom)
    return without_halo(conv(norm.activated(source.read(top - above, bottom + below))), above, below)


def without_halo(band: Tensor, above: int, below: int) -> Tensor:
    return band[:, :, above : band.shape[2] - below]


def doubled(band: Tensor) -> Tensor:
    """Nearest-neighbour x2: (1, C, h, w) -> (1, C, 2h, 2w), like interpolate(mode="nearest"), in any precision."""
    pixels = band.permute(0, 2, 3, 1)
    _, height, width, depth = pixels.shape
    pixels = pixels[:, :, None, :, None].expand(1, height, 2, width, 2, depth)
    return pixels.reshape(1, 2 * height, 2 * width, depth).permute(0, 3, 1, 2)


def padded(band: Tensor) -> Tensor:
    """Pad a row of zeros below, which only the map's last band uses, and a column on the right."""
    return F.pad(band.permute(0, 2, 3, 1), (0, 0, 0, 1, 0, 1)).permute(0, 3, 1, 2)


def positions(band: Tensor, heads: int) -> Tensor:
    """(1, heads d, h, w) -> (1, heads, h w, d)."""
    return band.permute(0, 2, 3, 1).flatten(1, 2).unflatten(-1, (heads, -1)).transpose(1, 2)


def pointwise(module: nn.Module, band: Tensor) -> Tensor:
    """A 1x1 convolution, or a linear layer over the channels: (1, C, rows, W) -> (1, D, rows, W)."""
    if isinstance(unwrapped(module), nn.Linear):
        return module(band.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return module(band)
