"""The layers of a video that see several frames, or change their number.

The frames pass one by one. A layer keeps the inputs that it needs again, and gives none, one or more frames for each.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from .convolve import convolved_frames
from .layers import (
    Attention,
    Fork,
    FramesDown,
    FramesUp,
    Join,
    Rearrange,
    Rearrangement,
    VideoConvolution,
    VideoNorm,
    channels,
    unwrapped,
)
from .maps import FeatureMap
from .norm import WholeNorm, norm_of_map
from .passes import BandedForward

SEEN_FRAMES = 3  # by a convolution


class FramesForward(BandedForward):
    """The forward pass of a picture or a video through all layers."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.done: Counter[int] = Counter()  # frames that a layer has taken or made

    def _layer(self, source: FeatureMap) -> list[FeatureMap]:
        match self.stage.layer:
            case FramesUp(conv):
                targets = self._frames_up(conv, source)
            case FramesDown(conv):
                targets = self._frames_down(conv, source)
            case VideoConvolution() as convolution:
                targets = self._video_convolution(convolution, source)
            case VideoNorm() as layer:
                targets = self._video_norm(layer, source)
            case Rearrange(how):
                targets = self._rearrange(how, source)
            case Fork(how):
                self.kept.setdefault(id(how), []).append(source)
                targets = [source]
            case Join(how):
                targets = [self._join(how, source)]
            case Attention(reach="past" | "video") as attention:
                targets = self._attention_over_frames(attention, source)
            case _:
                targets = super()._layer(source)
        return targets

    def _drop(self, maps: list[FeatureMap], count: int) -> None:
        """Take the first maps from a list of kept ones, and free those that nothing else needs."""
        for _ in range(count):
            dropped = maps.pop(0)
            if not self._is_kept(dropped):
                self.store.release(dropped)

    def _frames_up(self, conv: nn.Module, source: FeatureMap) -> list[FeatureMap]:
        """Two frames from each but the first, which the convolution does not see either."""
        if id(conv) not in self.past:
            self.past[id(conv)] = []
            return [source]
        frames = [self._new(channels(conv)[0]) for _ in range(2)]
        for top, _, band in self._convolved(conv, source, WholeNorm(None)):
            for frame, part in zip(frames, band.chunk(2, 1), strict=True):
                frame.write(top, part)
            self.advance(band.shape[2])
        return frames

    def _frames_down(self, conv: nn.Module, source: FeatureMap) -> list[FeatureMap]:
        """A frame from every second one and the two before it; the first one stands for itself."""
        past = self.past.setdefault(id(conv), [])
        kept = self._keep(conv, source)
        if kept is None:  # a picture
            return [source]
        target = self._new(channels(conv)[1]) if len(past) == 2 else None
        for top, bottom in self._bands(source.height):
            band = source.read(top, bottom)
            kept.write(top, band)
            if target is not None:
                before = [frame.read(top, bottom) for frame in past]
                target.write(top, conv(torch.stack([*before, band], 2))[:, :, 0])
            if past:
                self.advance(band.shape[2])
        if target is not None:
            self._forget(conv, 1)
            return [target]
        return [] if past else [source]

    def _video_convolution(self, layer: VideoConvolution, source: FeatureMap) -> list[FeatureMap]:
        """The frames for which all that the convolution sees is there now."""
        seen, window, targets = self.done[id(layer.conv)], self.kept.setdefault(id(layer.conv), []), []
        self.done[id(layer.conv)] += 1
        before, after = (2 - layer.ahead) * (seen == 0), layer.ahead * (seen == self.stage.frames - 1)
        for arrival in (source,) * (before + 1 + after):
            window.append(arrival)
            if len(window) == SEEN_FRAMES:
                targets.append(self._convolved_frames(layer, window))
                self._drop(window, layer.stride[0] - (layer.early and seen == 0))
        return targets

    def _convolved_frames(self, layer: VideoConvolution, window: list[FeatureMap]) -> FeatureMap:
        target, stride = self._target(channels(layer.conv)[1]), layer.stride[1]
        for top, bottom in self._bands(target.height):
            above, below = min(1, top), min(1, target.height - bottom) if stride == 1 else 0
            rows = (stride * (top - above), min(stride * (bottom + below), window[0].height))
            bands = {id(frame): frame.read(*rows) for frame in window}
            seen = [bands[id(frame)] for frame in window]
            self._write(target, top, convolved_frames(layer.conv, seen, layer.padding, above, below), self.next_norm)
        return target

    def _video_norm(self, layer: VideoNorm, source: FeatureMap) -> list[FeatureMap]:
        waiting, seen = self.kept.setdefault(id(layer), []), self.done[id(layer)]
        waiting.append(source)
        together = layer.later if seen else layer.first
        if seen + len(waiting) < self.stage.frames and len(waiting) != together:
            return []
        norm, targets = self._measured(layer.norm, waiting), []
        for frame in waiting:
            targets.append(self._target(unwrapped(layer.norm).num_channels))
            for top, bottom in self._bands(frame.height):
                self._write(targets[-1], top, norm.activated(frame.read(top, bottom)), self.next_norm)
        self.done[id(layer)] += len(waiting)
        self._drop(waiting, len(waiting))
        return targets

    def _measured(self, module: nn.Module, frames: list[FeatureMap]) -> WholeNorm:
        """The norm with the statistics of all these frames."""
        norm = norm_of_map(module)
        for frame in frames:
            for top, bottom in self._bands(frame.height):
                norm.measure(frame.read(top, bottom))
        return norm

    def _rearrange(self, how: Rearrangement, source: FeatureMap) -> list[FeatureMap]:
        frames, first = self.kept.setdefault(id(how), []), not self.done[id(how)]
        frames.append(source)
        if not how.up and not first and len(frames) < how.frames:
            return []
        targets = [self._target(how.widths[1]) for _ in range(1 if first or not how.up else how.frames)]
        for top, bottom in self._bands(targets[0].height, step=how.factor if how.up else 1):
            band = _rearranged(how, frames, first, (top, bottom), targets[0].width)
            for target, frame in zip(targets, band.unbind(2), strict=True):
                self._write(target, top, frame, self.next_norm)
        self.done[id(how)] += 1
        self._drop(frames, len(frames))
        return targets

    def _join(self, how: Rearrangement, source: FeatureMap) -> FeatureMap:
        """The sum overwrites `source`, unless this is the last layer."""
        target = self._target(how.widths[1], source)
        seen, kept = self.done[id(how)], self.kept[id(how)]
        part = (seen - 1) % how.frames if how.up and seen else 0
        frames = kept[: 1 if how.up or not seen else how.frames]
        for top, bottom in self._bands(source.height, step=how.factor if how.up else 1):
            added = _rearranged(how, frames, not seen, (top, bottom), source.width)[:, :, part]
            self._write(target, top, source.read(top, bottom) + added, self.next_norm)
        self.done[id(how)] += 1
        if not how.up or not seen or part == how.frames - 1:
            self._drop(kept, len(frames))
        return target

    def _attention_over_frames(self, layer: Attention, source: FeatureMap) -> list[FeatureMap]:
        """All frames wait for the last one, which the norm of the first one may see too."""
        waiting = self.kept.setdefault(id(layer), [])
        waiting.append(source)
        if len(waiting) < self.stage.frames:
            return []
        self.norm, targets = self._measured(layer.norm, waiting), []
        pairs = [self._keys_and_values(layer, frame) for frame in waiting]
        for index, frame in enumerate(waiting):
            seen = pairs[: index + 1] if layer.reach == "past" else pairs
            targets.append(self._attend(layer, frame, *(list(maps) for maps in zip(*seen, strict=True))))
        for key, value in pairs:
            self.store.release(key)
            self.store.release(value)
        waiting.clear()
        return targets


def _rearranged(how: Rearrangement, frames: list[FeatureMap], first: bool, rows: tuple[int, int], width: int) -> Tensor:
    """These rows of the rearranged frames: (1, C, frames, rows, width)."""
    top, bottom = (row // how.factor if how.up else row * how.factor for row in rows)
    width = width // how.factor if how.up else width * how.factor
    return how.function(torch.stack([frame.read(top, bottom)[..., :width] for frame in frames], 2), first)
