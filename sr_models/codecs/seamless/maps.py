"""Feature maps of a whole picture, read and written in bands of rows, within a budget of memory.

A map is on the compute device while the budget has room for it, else in host memory; where the compute device is
the CPU itself, in a temporary file.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol

import torch
from torch import Tensor

from ...errors import UserError


class FeatureMap(Protocol):
    """What layers read and write. A band is (1, C, rows, W), read on the compute device in the run's precision."""

    height: int
    width: int
    resident: int  # bytes of the budget that it takes

    def read(self, top: int, bottom: int) -> Tensor:
        """The rows [top, bottom). It may be a view of the map: not to be changed."""
        ...

    def write(self, top: int, band: Tensor) -> None:
        """Put the band at the rows [top, top + its rows)."""
        ...


class CanvasMap:
    """A picture or latent (1, C, H, W) of the caller, wherever it is: what is read first, or written last.

    Of a band with more channels, the first C are written.
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
    """On the compute device, or in host memory (pinned for CUDA). Pixels are stored channels last, so that a band
    of rows is one piece of memory and convolutions take it as it is."""

    def __init__(self, height: int, width: int, channels: int, dtype: torch.dtype, device: torch.device, here: bool):
        self.height, self.width, self.device = height, width, device
        at = device if here else torch.device("cpu")
        pin = not here and device.type == "cuda"
        self.pixels = torch.empty(1, height, width, channels, dtype=dtype, device=at, pin_memory=pin)
        self.resident = self.pixels.nbytes if here else 0
        self.asynchronous = pin  # elsewhere what is read after a write need not wait for it

    def read(self, top: int, bottom: int) -> Tensor:
        return for_device(
            self.pixels[:, top:bottom].to(self.device, non_blocking=self.asynchronous).permute(0, 3, 1, 2)
        )

    def write(self, top: int, band: Tensor) -> None:
        self.pixels[:, top : top + band.shape[2]].copy_(band.permute(0, 2, 3, 1), non_blocking=self.asynchronous)


class FileMap:
    """In a temporary file that has no name, so that it goes away with the process, whatever ends it.

    Bands are read and written explicitly: pages of a memory-mapped file would count as resident memory.
    """

    resident = 0

    def __init__(self, height: int, width: int, channels: int, dtype: torch.dtype):
        self.height, self.width, self.channels, self.dtype = height, width, channels, dtype
        self.row_bytes = width * channels * dtype.itemsize
        self.file: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (Store.close closes it)

    def read(self, top: int, bottom: int) -> Tensor:
        pixels = torch.empty(1, bottom - top, self.width, self.channels, dtype=self.dtype)
        self._transfer("readinto", top, pixels)
        return pixels.permute(0, 3, 1, 2)

    def write(self, top: int, band: Tensor) -> None:
        try:
            self._transfer("write", top, band.permute(0, 2, 3, 1).contiguous())
        except OSError as error:
            raise UserError(
                f"A feature map of {megabytes(self.height * self.row_bytes)} MB cannot be written to "
                f"{tempfile.gettempdir()} ({error.strerror}): free some space there or raise the memory budget."
            ) from error

    def _transfer(self, method: str, top: int, pixels: Tensor) -> None:
        """Calls move at most 2 GB at once, so again until nothing is left."""
        left = pixels.view(-1).view(torch.uint8).numpy().data
        self.file.seek(top * self.row_bytes)
        while left:
            left = left[getattr(self.file, method)(left) :]


class Heap:
    """The C library's heap on Linux: it keeps freed blocks, and bands of changing size would make it grow.

    Gives them back to the system when the process holds more than its budget.
    """

    STEP = 32 * 2**20  # growth that is worth another try, should others in the process be what grows

    def __init__(self, budget: int):
        self.trim = _malloc_trim()
        self.limit = self.next_limit = _resident_bytes() + budget

    def make_room(self, size: int) -> None:
        """Before `size` bytes are allocated."""
        if self.trim is not None and _resident_bytes() + size > self.next_limit:
            self.trim(0)
            self.next_limit = max(self.limit, _resident_bytes() + size + self.STEP)


class Store:
    """Makes maps, and knows how much of the budget is left for the work on a band."""

    def __init__(self, device: torch.device, dtype: torch.dtype, budget: int, reserve: int):
        """budget: bytes on `device` for maps and work; reserve: how much of it maps leave to the work."""
        self.device, self.dtype, self.budget, self.reserve = device, dtype, budget, reserve
        self.maps: list[MemoryMap | FileMap] = []
        self.heap = Heap(budget)

    @property
    def workspace(self) -> int:
        """Bytes left for the work on a band."""
        return self.budget - sum(feature_map.resident for feature_map in self.maps)

    def new(self, height: int, width: int, channels: int) -> MemoryMap | FileMap:
        here = height * width * channels * self.dtype.itemsize + self.reserve <= self.workspace
        if here or self.device.type != "cpu":
            made = MemoryMap(height, width, channels, self.dtype, self.device, here)
        else:
            made = FileMap(height, width, channels, self.dtype)
        self.maps.append(made)
        return made

    def release(self, feature_map: FeatureMap) -> None:
        """Give back the memory of a map; one that this store did not make is left alone."""
        for index, known in enumerate(self.maps):
            if known is feature_map:
                _close(self.maps.pop(index))
                return

    def close(self) -> None:
        while self.maps:
            _close(self.maps.pop())


def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def _resident_bytes() -> int:
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def for_device(band: Tensor) -> Tensor:
    """Metal has computed wrong convolutions of bands that are channels last."""
    return band.contiguous() if band.device.type == "mps" else band


def megabytes(size: int) -> int:
    return -(-size // 2**20)


def _close(feature_map: MemoryMap | FileMap) -> None:
    if isinstance(feature_map, FileMap):
        feature_map.file.close()
    else:
        del feature_map.pixels
