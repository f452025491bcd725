"""Run a list of layers over maps, band by band.

A convolution gets a band with one extra row above and below where the map has them, so its zero padding only affects
the map's true border; rows computed from padding elsewhere are cropped. Statistics of a GroupNorm are measured while
its input map is written.

A video passes frame by frame: a causal convolution keeps its input of the two frames before. See also `frames`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...networks.vq_autoencoder import Quantizer
from .convolve import convolved, enlarged, joined, padded, pointwise, positions, rewidened, without_halo
from .layers import (
    Attention,
    Convolution,
    Downsample,
    Layer,
    Local,
    Quantization,
    ResidualBlock,
    Upsample,
    channels,
    is_causal,
    unwrapped,
)
from .maps import FeatureMap, Store
from .norm import WholeNorm, norm_of_map
from .plan import COMFORTABLE_ROWS, Stage

Progress = Callable[[int, int], object]
Maps = list[FeatureMap]

# CPU allocators reuse blocks of memory up to 32 MB. Larger blocks get new pages every time, which makes elementwise
# operations several times slower. A band is at most six such blocks.
FAST_BAND_ON_CPU = 6 * 20 * 2**20
# Larger bands keep a GPU no busier, and would take all memory that is free.
FAST_BAND = 2 * 2**30
# With maps in pinned memory, a band's input is loaded and its result stored beside the work on the next band, which
# takes up to half more memory. The first load and the last store of a pass wait for nothing, so bands are not too few.
FEWEST_BANDS = 12
SCORE_BYTES = 12  # per query and key if attention is not fused: the score, its exponential, and a copy


class BandedForward:
    """The forward pass of one picture, or of one video frame by frame, through the layers, band by band."""

    def __init__(self, plan: list[Stage], store: Store, advance: Callable[[int], object]):
        """advance: called after each band with the number of rows of work done."""
        self.plan, self.store, self.advance = plan, store, advance
        self.stage, self.is_last = plan[0], len(plan) == 1
        self.norm = self.next_norm = WholeNorm(None)  # of the current layer's input and output maps
        self.past: dict[int, list[FeatureMap]] = {}  # of each causal convolution: up to two inputs before this frame's
        self.kept: dict[int, list[FeatureMap]] = {}  # of layers with several frames: the inputs that they still need

    def __call__(self, source: FeatureMap, result: FeatureMap) -> None:
        """Read from `source`; the last layer writes to `result`."""
        self.video([source], [result])

    def video(self, sources: Iterable[FeatureMap], results: Iterable[FeatureMap]) -> None:
        """Read from `sources`, the frames in order; the last layer writes to `results`."""
        self.results = iter(results)
        for source in sources:
            self._follow(source, WholeNorm(None), 0)

    def _follow(self, source: FeatureMap, norm: WholeNorm, index: int) -> None:
        """A frame's way from the layer at `index` on; where it becomes two, the first one goes all the way first."""
        last = index == len(self.plan) - 1
        following = norm_of_map(None if last else _norm_of(self.plan[index + 1].layer))
        self.stage, self.norm, self.next_norm, self.is_last = self.plan[index], norm, following, last
        targets = self._layer(source)
        if source not in targets and not self._is_kept(source):
            self.store.release(source)
        for target in () if last else targets:
            self._follow(target, following, index + 1)

    def _layer(self, source: FeatureMap) -> list[FeatureMap]:
        match self.stage.layer:
            case Convolution(conv, shortcut=shortcut):
                target = self._target(channels(conv)[1])
                self._convolution(conv, source, self.norm, target, self.next_norm, shortcut)
            case ResidualBlock() as block:
                target = self._residual_block(block, source)
            case Attention() as attention:
                target = self._attention(attention, source)
            case Upsample(conv):
                target = self._target(channels(conv)[1])
                self._upsample(conv, source, target)
            case Downsample(conv, centred):
                target = self._target(channels(conv)[1])
                (self._downsample_centred if centred else self._downsample)(conv, source, target)
            case Local() as layer:
                target = self._target(layer.widths[1])
                self._local(layer, source, target)
            case Quantization(quantizer):
                target = self._target(quantizer.embedding.embedding_dim)
                self._convolution(quantizer, source, self.norm, target, self.next_norm)
            case other:
                raise TypeError(other)
        return [target]

    def _target(self, width: int, in_place: FeatureMap | None = None) -> FeatureMap:
        """Where the layer writes a frame: a new map if there is none to overwrite; the last one, to the result."""
        if self.is_last:
            return next(self.results)
        return self._new(width) if in_place is None else in_place

    def _new(self, width: int) -> FeatureMap:
        return self.store.new(*self.stage.output, width)

    def _bands(self, height: int, step: int = 1) -> Iterator[tuple[int, int]]:
        row = self.stage.elements_per_row * self.store.dtype.itemsize
        around = 2 * self.stage.halo
        rows = max(1, self.store.workspace // row - around)
        fast = FAST_BAND_ON_CPU if self.store.device.type == "cpu" else FAST_BAND
        rows = min(rows, max(COMFORTABLE_ROWS, fast // row))
        if self.store.transfers is not None:
            rows = max(1, min(rows * 2 // 3, max(COMFORTABLE_ROWS, height // FEWEST_BANDS)))
        for top, bottom in even_bands(height, rows, step):
            self.store.prepare((bottom - top + around) * row)
            yield top, bottom

    def _write(self, target: FeatureMap, top: int, band: Tensor, norm: WholeNorm) -> None:
        norm.measure(band)
        target.write(top, band)
        self.advance(band.shape[2])

    def _convolution(
        self,
        conv: nn.Module,
        source: FeatureMap,
        norm: WholeNorm,
        target: FeatureMap,
        next_norm: WholeNorm,
        shortcut: bool = False,
    ) -> None:
        for top, bottom, band in self._convolved(conv, source, norm):
            if shortcut:
                band.add_(rewidened(source.read(top, bottom), band.shape[1]))
            self._write(target, top, band, next_norm)

    def _convolved(self, conv: nn.Module, source: FeatureMap, norm: WholeNorm) -> Iterator[tuple[int, int, Tensor]]:
        """[top, bottom) and these rows of conv(silu(norm(source))), or of conv(source): (1, C, bottom - top, W)."""
        halo = 0 if isinstance(unwrapped(conv), nn.Linear | Quantizer) else unwrapped(conv).kernel_size[-1] // 2
        past, kept = self.past.get(id(conv), []), self._keep(conv, source)
        for top, bottom in self._bands(source.height):
            above, below = min(halo, top), min(halo, source.height - bottom)
            band = norm.activated(source.read(top - above, bottom + below))
            if kept is not None:
                kept.write(top, without_halo(band, above, below))
            before = [frame.read(top - above, bottom + below) for frame in past]
            yield top, bottom, convolved(conv, band, above, below, before)
        self._forget(conv)

    def _keep(self, conv: nn.Module, source: FeatureMap) -> FeatureMap | None:
        """A map for the input of a convolution that sees it again in the next two frames."""
        if self.plan[0].frames == 1 or not is_causal(conv) or unwrapped(conv).kernel_size[0] == 1:
            return None
        kept = self.store.new(source.height, source.width, channels(conv)[0])
        self.past[id(conv)] = [*self.past.get(id(conv), []), kept]
        return kept

    def _forget(self, conv: nn.Module, frames: int = 2) -> None:
        """Free all but the last `frames` inputs."""
        past = self.past.get(id(conv), [])
        while len(past) > frames:
            self.store.release(past.pop(0))

    def _is_kept(self, source: FeatureMap) -> bool:
        return any(source in maps for maps in self.kept.values())

    def _residual_block(self, block: ResidualBlock, source: FeatureMap) -> FeatureMap:
        """The result overwrites `source` if it has the same number of channels, and no join needs it."""
        width_in, width = channels(block.conv1)
        norm = norm_of_map(block.norm2)
        hidden = self._new(width)
        self._convolution(block.conv1, source, self.norm, hidden, norm)
        target = self._target(width, source if width_in == width and not self._is_kept(source) else None)
        for top, bottom, branch in self._convolved(block.conv2, hidden, norm):
            kept = source.read(top, bottom)
            total = branch.add_(kept if block.shortcut is None else convolved(block.shortcut, kept, 0, 0))
            self._write(target, top, total, self.next_norm)
        self.store.release(hidden)
        return target

    def _upsample(self, conv: nn.Module, source: FeatureMap, target: FeatureMap) -> None:
        for top, bottom in self._bands(target.height, step=2):
            above, below = min(1, top), min(1, target.height - bottom)
            small = source.read(top // 2 - above, bottom // 2 + below)
            self._write(target, top, enlarged(conv, small, above, below), self.next_norm)

    def _downsample(self, conv: nn.Module, source: FeatureMap, target: FeatureMap) -> None:
        for top, bottom in self._bands(target.height):
            band = source.read(2 * top, min(2 * bottom + 1, source.height))
            self._write(target, top, conv(padded(band)), self.next_norm)

    def _downsample_centred(self, conv: nn.Module, source: FeatureMap, target: FeatureMap) -> None:
        """The convolution also computes the output row above a band, of which it sees half, where there is one."""
        for top, bottom in self._bands(target.height):
            above = min(1, top)
            band = source.read(2 * (top - above), min(2 * bottom, source.height))
            self._write(target, top, without_halo(conv(band), above, 0), self.next_norm)

    def _local(self, layer: Local, source: FeatureMap, target: FeatureMap) -> None:
        up, down = layer.up, layer.down
        height, width = target.height * down // up, target.width * down // up
        for top, bottom in self._bands(target.height, step=up):
            first, last = top * down // up, bottom * down // up
            above, below = min(layer.halo, first), min(layer.halo, height - last)
            band = layer.function(source.read(first - above, last + below)[..., :width])
            band = without_halo(band, above * up // down, below * up // down)
            self._write(target, top, band.contiguous(memory_format=torch.channels_last), self.next_norm)

    def _attention(self, layer: Attention, source: FeatureMap) -> FeatureMap:
        """Attention from every position to all positions; the result is added in place."""
        keys, values = self._keys_and_values(layer, source)
        target = self._attend(layer, source, [keys], [values])
        self.store.release(keys)
        self.store.release(values)
        return target

    def _keys_and_values(self, layer: Attention, source: FeatureMap) -> tuple[FeatureMap, FeatureMap]:
        keys, values = (self._new(channels(module)[1]) for module in (layer.key, layer.value))
        for top, bottom in self._bands(source.height):
            band = self.norm.apply(source.read(top, bottom))
            keys.write(top, pointwise(layer.key, band))
            self._write(values, top, pointwise(layer.value, band), WholeNorm(None))
        return keys, values

    def _attend(self, layer: Attention, source: FeatureMap, keys: Maps, values: Maps) -> FeatureMap:
        """The attention of one frame to the keys and values of one or more; the result is added in place."""
        target = self._target(channels(layer.out)[1], source)
        copied = sum(each.resident for each in (*keys, *values)) if len(keys) > 1 else 0
        here = all(each.resident for each in (*keys, *values)) and copied <= self.store.workspace // 2
        attend = self._attend_whole if here else self._attend_in_blocks
        for top, bottom in self._bands(source.height):
            band = source.read(top, bottom)
            query = positions(pointwise(layer.query, self.norm.apply(band)), layer.heads)
            attended = attend(query, keys, values, layer.heads)
            attended = attended.transpose(1, 2).reshape(1, *band.shape[2:], -1).permute(0, 3, 1, 2)
            self._write(target, top, pointwise(layer.out, attended).add(band), self.next_norm)
        return target

    def _attend_whole(self, query: Tensor, keys: Maps, values: Maps, heads: int) -> Tensor:
        """As many queries at once as fit in memory if the device stores all their scores."""
        key, value = (joined([positions(m.read(0, m.height), heads) for m in maps]) for maps in (keys, values))
        at_once = max(1, self.store.workspace // 4 // (SCORE_BYTES * heads * key.shape[2]))
        parts = (F.scaled_dot_product_attention(part, key, value) for part in query.split(at_once, dim=2))
        return torch.cat(list(parts), dim=2)

    def _attend_in_blocks(self, query: Tensor, keys: Maps, values: Maps, heads: int) -> Tensor:
        """Softmax over blocks of keys: sums are relative to the largest score so far (float32)."""
        scaled = query.float() * query.shape[-1] ** -0.5
        largest = torch.full_like(scaled[..., :1], -torch.inf)
        total, weighted = torch.zeros_like(largest), torch.zeros_like(scaled)
        for pair in self._blocks(keys, values, SCORE_BYTES * heads * query.shape[2] * keys[0].width):
            key, value = (positions(block, heads).float() for block in pair)
            scores = scaled @ key.transpose(-1, -2)
            before, largest = largest, torch.maximum(largest, scores.amax(-1, keepdim=True))
            scores = scores.sub_(largest).exp_()
            shrunk = (before - largest).exp_()
            total = total * shrunk + scores.sum(-1, keepdim=True)
            weighted = weighted.mul_(shrunk).add_(scores @ value)
        return (weighted / total).to(query.dtype)

    def _blocks(self, keys: Maps, values: Maps, row: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Of as many rows as fit in memory; row: bytes for one."""
        rows = max(1, self.store.workspace // 4 // row)
        with self.store.within_a_band():
            for key, value in zip(keys, values, strict=True):
                for top, bottom in even_bands(key.height, rows):
                    self.store.prepare((bottom - top) * row)
                    yield key.read(top, bottom), value.read(top, bottom)


def _norm_of(layer: Layer) -> nn.Module | None:
    """The norm that the layer applies to its input, with the input's own statistics."""
    match layer:
        case ResidualBlock(norm1=norm) | Convolution(norm=norm) | Attention(norm=norm):
            return norm
    return None


def even_bands(height: int, rows: int, step: int = 1) -> Iterator[tuple[int, int]]:
    """[top, bottom) of the fewest bands that cover [0, height) with at most `rows` rows each, and at least one step.

    Bands start at multiples of `step`; all but the last have the same number of rows.
    """
    steps = -(-height // step)
    bands = -(-steps // max(1, rows // step))
    size = -(-steps // bands) * step
    for top in range(0, height, size):
        yield top, min(top + size, height)
