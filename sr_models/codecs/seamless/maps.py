"""Feature maps of a whole picture, read and written in bands of rows, within a budget of memory.

A map is on the compute device if the budget has room for it, otherwise in host memory, or in a temporary file if
the compute device is the CPU.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Protocol

import torch
from torch import Tensor

from ...errors import UserError
from ...files.temporary import spill_folder
from .pinned import PinnedMap, Transfers

WITH_STREAMS = ("cuda",)


class FeatureMap(Protocol):
    """What layers read and write. Bands are (1, C, rows, W) on the compute device, in the precision of the work."""

    height: int
    width: int
    resident: int  # bytes of the budget in use

    def read(self, top: int, bottom: int) -> Tensor:
        """The rows [top, bottom), possibly a view of the map, which must not be modified."""
        ...

    def write(self, top: int, band: Tensor) -> None:
        """Store the band at rows [top, top + its rows)."""
        ...


class CanvasMap:
    """The caller's picture or latent (1, C, H, W) on any device: the first map read, or the last one written.

    If a band has more than C channels, the first C are written.
    """

    resident = 0

    def __init__(self, canvas: Tensor, device: torch.device, dtype: torch.dtype):
        self.canvas, self.device, self.dtype = canvas, device, dtype
        self.height, self.width = canvas.shape[2:]

    def read(self, top: int, bottom: int) -> Tensor:
        band = self.canvas[:, :, top:bottom].to(self.device, self.dtype)
        return for_device(band.contiguous(memory_format=torch.channels_last))

    def write(self, top: int, band: Tensor) -> None:
        self.canvas[:, :, top : top + band.shape[2]] = band[:, : self.canvas.shape[1]]


class MemoryMap:
    """On the compute device, or in host memory (for CUDA, see `PinnedMap`). Pixels are stored channels last, so that a
    band of rows is contiguous in memory and needs no conversion for convolutions."""

    def __init__(self, height: int, width: int, channels: int, dtype: torch.dtype, device: torch.device, here: bool):
        self.height, self.width, self.device = height, width, device
        at = device if here else torch.device("cpu")
        self.pixels = torch.empty(1, height, width, channels, dtype=dtype, device=at)
        self.resident = self.pixels.nbytes if here else 0

    def read(self, top: int, bottom: int) -> Tensor:
        return for_device(self.pixels[:, top:bottom].to(self.device).permute(0, 3, 1, 2))

    def write(self, top: int, band: Tensor) -> None:
        self.pixels[:, top : top + band.shape[2]].copy_(band.permute(0, 2, 3, 1))


class FileMap:
    """In an unnamed temporary file in `folder`, which disappears with the process however that ends.

    Bands are read and written explicitly, because pages of a memory-mapped file would count as resident memory.
    """

    resident = 0

    def __init__(self, height: int, width: int, channels: int, dtype: torch.dtype, folder: Path):
        self.height, self.width, self.channels, self.dtype = height, width, channels, dtype
        self.row_bytes, self.folder = width * channels * dtype.itemsize, folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file: IO[bytes] = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115 (Store.close closes it)
        except OSError as error:
            raise self._not_written(error) from error

    def read(self, top: int, bottom: int) -> Tensor:
        pixels = torch.empty(1, bottom - top, self.width, self.channels, dtype=self.dtype)
        self._transfer("readinto", top, pixels)
        return pixels.permute(0, 3, 1, 2)

    def write(self, top: int, band: Tensor) -> None:
        try:
            self._transfer("write", top, band.permute(0, 2, 3, 1).contiguous())
        except OSError as error:
            raise self._not_written(error) from error

    def _not_written(self, error: OSError) -> UserError:
        return UserError(
            f"A feature map of {megabytes(self.height * self.row_bytes)} MB cannot be written to {self.folder} "
            f"({error.strerror}): free some space there, choose another folder (--spill) or raise the memory budget."
        )

    def _transfer(self, method: str, top: int, pixels: Tensor) -> None:
        """Repeat until everything is transferred: one call moves at most 2 GB."""
        left = pixels.view(-1).view(torch.uint8).numpy().data
        self.file.seek(top * self.row_bytes)
        while left:
            left = left[getattr(self.file, method)(left) :]


class Heap:
    """The C library's heap on Linux. It keeps freed blocks, so bands of changing size would make it grow.

    Returns freed blocks to the system when the process uses more than its budget.
    """

    STEP = 32 * 2**20  # growth before the next attempt, in case other parts of the process are growing

    def __init__(self, budget: int):
        self.trim = _malloc_trim()
        self.limit = self.next_limit = _resident_bytes() + budget

    def make_room(self, size: int) -> None:
        """Call before allocating `size` bytes."""
        if self.trim is not None and _resident_bytes() + size > self.next_limit:
            self.trim(0)
            self.next_limit = max(self.limit, _resident_bytes() + size + self.STEP)


class Store:
    """Creates maps, and tracks how much of the budget is left for the work on a band."""

    def __init__(self, device: torch.device, dtype: torch.dtype, budget: int, reserve: int, spill: Path | None = None):
        """budget: bytes on `device` for maps and work; reserve: the part of it kept free for work; spill: the folder
        for maps in files, see `spill_folder`."""
        self.device, self.dtype, self.budget, self.reserve, self.spill = device, dtype, budget, reserve, spill
        self.maps: list[MemoryMap | PinnedMap | FileMap] = []
        self.heap = Heap(budget)
        self.transfers: Transfers | None = None  # from the first map in pinned memory on

    @property
    def workspace(self) -> int:
        """Bytes left for the work on a band."""
        return self.budget - sum(feature_map.resident for feature_map in self.maps)

    def prepare(self, size: int) -> None:
        """Call before the work on a band, which needs `size` bytes."""
        if self.device.type == "cpu":
            self.heap.make_room(size)
        elif self.transfers is not None:
            self.transfers.next_band()

    def within_a_band(self) -> AbstractContextManager[object]:
        """For bands whose work is a part of the work on another one."""
        return nullcontext() if self.transfers is None else self.transfers.within_a_band()

    def new(self, height: int, width: int, channels: int) -> MemoryMap | PinnedMap | FileMap:
        here = height * width * channels * self.dtype.itemsize + self.reserve <= self.workspace
        if not here and self.device.type == "cpu":
            made = FileMap(height, width, channels, self.dtype, spill_folder(self.spill))
        elif not here and self.device.type in WITH_STREAMS:
            self.transfers = self.transfers or Transfers(self.device)
            made = PinnedMap(height, width, channels, self.dtype, self.transfers)
        else:
            made = MemoryMap(height, width, channels, self.dtype, self.device, here)
        self.maps.append(made)
        return made

    def release(self, feature_map: FeatureMap) -> None:
        """Free a map's memory; a map that this store did not create is ignored."""
        for index, known in enumerate(self.maps):
            if known is feature_map:
                _close(self.maps.pop(index))
                return

    def close(self) -> None:
        if self.transfers is not None:
            self.transfers.finish()
        while self.maps:
            _close(self.maps.pop())


def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def _resident_bytes() -> int:
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def for_device(band: Tensor) -> Tensor:
    """Metal has computed wrong results for convolutions of channels-last bands."""
    return band.contiguous() if band.device.type == "mps" else band


def megabytes(size: int) -> int:
    return -(-size // 2**20)


def _close(feature_map: MemoryMap | PinnedMap | FileMap) -> None:
    if isinstance(feature_map, FileMap):
        feature_map.file.close()
    else:
        del feature_map.pixels
