"""Feature maps in pinned host memory, whose rows travel while a CUDA device works on other bands.

Rows arrive on one stream and leave on another. Events order them: a read waits for the writes of its rows, the work for
the read, a write for the work. Bands in flight are kept alive here, because some hosts' allocators know nothing of
tensors that are used on several streams.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Transfers:
    """The streams of a run. Buffers of at most two bands exist: the one in work and the one that is being loaded."""

    def __init__(self, device: torch.device):
        self.device = device
        self.arriving, self.leaving = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self.queued: list[Any] = []  # events: all work and writes queued before the current band
        self.current: list[Tensor] = []  # tensors of the current band, and of the one before
        self.previous: list[Tensor] = []

    @property
    def work(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self.device)

    def next_band(self) -> None:
        """Call before each band: waits until all bands but the last one are done."""
        for event in self.queued:
            event.synchronize()
        self.previous, self.current = self.current, []
        self.queued = [self.work.record_event(), self.leaving.record_event()]

    @contextmanager
    def within_a_band(self) -> Iterator[None]:
        """For bands whose work is a part of the work on another one, whose tensors are kept alive meanwhile."""
        outer = self.queued, self.current, self.previous
        self.queued, self.current, self.previous = [], [], []
        try:
            yield
        finally:
            self.finish()
            self.queued, self.current, self.previous = outer

    def finish(self) -> None:
        """Wait for everything, and let go of all tensors."""
        for stream in (self.arriving, self.work, self.leaving):
            stream.synchronize()
        self.previous, self.current, self.queued = [], [], []


class PinnedMap:
    """A map in pinned host memory. Pixels are stored channels last, as in `MemoryMap`."""

    resident = 0

    def __init__(self, height: int, width: int, channels: int, dtype: torch.dtype, transfers: Transfers):
        self.height, self.width, self.transfers = height, width, transfers
        transfers.finish()  # Pinning takes long: the memory of maps that are no longer in use can be used again now.
        self.pixels = torch.empty(1, height, width, channels, dtype=dtype, pin_memory=True)
        self.written: list[tuple[int, int, Any]] = []  # rows [top, bottom) and the event after their transfer

    def read(self, top: int, bottom: int) -> Tensor:
        arriving = self.transfers.arriving
        for first, last, event in self.written:
            if first < bottom and top < last:
                arriving.wait_event(event)
        with torch.cuda.stream(arriving):
            band = self.pixels[:, top:bottom].to(self.transfers.device, non_blocking=True, copy=True)
        self.transfers.work.wait_stream(arriving)
        self.transfers.current.append(band)
        return band.permute(0, 3, 1, 2)

    def write(self, top: int, band: Tensor) -> None:
        bottom, leaving = top + band.shape[2], self.transfers.leaving
        pixels = band.permute(0, 2, 3, 1).contiguous()
        leaving.wait_stream(self.transfers.work)
        with torch.cuda.stream(leaving):
            self.pixels[:, top:bottom].copy_(pixels, non_blocking=True)
        self.transfers.current.append(pixels)
        replaced = [rows for rows in self.written if top <= rows[0] and rows[1] <= bottom]
        self.written = [rows for rows in self.written if rows not in replaced]
        self.written.append((top, bottom, leaving.record_event()))
