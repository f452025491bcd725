"""Finished rows of a large picture on disk, so that an interrupted run can resume.

Rows are written and read explicitly, because pages of a memory-mapped file would count as the program's memory.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .whole import shortened

DEPTH = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class SpoolSize:
    height: int
    width: int
    channels: int

    @property
    def row_bytes(self) -> int:
        return self.width * self.channels * 2


def spool_of(target: Path) -> Path:
    """The file that holds a target's finished rows until it is written."""
    return target.with_name(f".{shortened(target.name)}.part")


class Spool:
    """Rows of a picture (C, H, W) in [0, 1], 16 bits per value, in a hidden file next to the target.

    `settings` are everything that the rows depend on. Rows of an earlier run with the same settings are kept, and
    `finished` counts them. A context manager that closes its files, and removes them while no row is finished. While it
    is open, no other process can open it: that raises UserError.
    """

    def __init__(self, target: Path, size: SpoolSize, settings: dict[str, object]):
        self.size, self.target = size, target
        self.path = spool_of(target)
        self.record = target.with_name(f".{shortened(target.name)}.part.json")
        self.settings = json.loads(json.dumps(settings | {"size": [size.height, size.width, size.channels]}))
        self.file = locked(self.path, target)
        self.finished = self._finished_before()
        self.file.truncate(self.finished * size.row_bytes)

    def _finished_before(self) -> int:
        try:
            record = json.loads(self.record.read_text())
            rows = record["finished"]
            kept = (
                type(rows) is int
                and 0 <= rows <= self.size.height
                and record["settings"] == self.settings
                and self.path.stat().st_size >= rows * self.size.row_bytes
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return 0
        return rows if kept else 0

    def append(self, rows: Tensor) -> None:
        """Write the next rows (C, n, W) and record them as finished."""
        values = (rows.clamp(0, 1) * DEPTH).round().to(torch.int32).permute(1, 2, 0).numpy().astype(np.uint16)
        self.file.seek(self.finished * self.size.row_bytes)
        remaining = np.ascontiguousarray(values).data.cast("B")
        while remaining:
            remaining = remaining[self.file.write(remaining) :]
        self.finished += rows.shape[1]
        self._note()

    def _note(self) -> None:
        """Update the record, after the rows it counts are on disk; by a temporary file, so that it is never partial."""
        os.fsync(self.file.fileno())
        temporary = self.record.with_suffix(".tmp")
        temporary.write_text(json.dumps({"settings": self.settings, "finished": self.finished}))
        os.replace(temporary, self.record)

    def read(self, top: int, bottom: int) -> Tensor:
        """Rows [top, bottom) as (C, n, W) float32 in [0, 1]. Raises UserError if the file has become too short."""
        self.file.seek(top * self.size.row_bytes)
        values = np.empty((bottom - top, self.size.width, self.size.channels), np.uint16)
        remaining = values.data.cast("B")
        while remaining:
            count = self.file.readinto(remaining)  # pyright: ignore[reportAttributeAccessIssue]
            if not count:
                raise UserError(f"{self.path} was truncated while it was in use: run the command again.")
            remaining = remaining[count:]
        return torch.from_numpy(values.astype(np.float32)).div_(DEPTH).permute(2, 0, 1)

    def discard(self) -> None:
        """Remove both files, once the picture is written."""
        for path in (self.record, self.record.with_suffix(".tmp"), self.path):
            with suppress(OSError):
                path.unlink()
        self.file.close()
        with suppress(OSError):  # where a file that is open cannot be removed
            self.path.unlink()

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *error: object) -> None:
        if not self.finished:
            self.discard()
        self.file.close()


def locked(path: Path, target: Path) -> IO[bytes]:
    """A file that this process alone has, opened and locked; of one that another process removes meanwhile, the new
    one. Raises UserError where another process has it, and so writes the target."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b", 0)
        try:
            _lock(file)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except OSError as error:
            file.close()
            raise UserError(f"{target} is being written by another process: wait until it ends.") from error
        file.close()


def _lock(file: IO[bytes]) -> None:
    """For this process alone, until the file is closed. Raises OSError where another has it."""
    try:
        import fcntl
    except ImportError:
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        file.seek(0)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
