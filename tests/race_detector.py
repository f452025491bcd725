"""CUDA streams without a GPU: operations run at once, and each access to memory is checked for what orders it.

Two accesses to the same elements, at least one of them a write, need an order: they are on one stream, or the second
one's stream has waited for the first one. Memory that is freed must not be in use on other streams than its own, whose
next tensors may get it. Pinned memory may: torch keeps it until all streams are done with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Stream:
    """A queue. `known`: how much of each queue is done once this one gets here. Also an event: a queue's state."""

    def __init__(self, host: Counter[int], known: Counter[int] | None = None):
        self.host, self.known = host, Counter(known or {})

    def queue(self) -> int:
        self.known[id(self)] += 1
        return self.known[id(self)]

    def record_event(self) -> Stream:
        return Stream(self.host, self.known)

    def wait_event(self, event: Stream) -> None:
        self.known |= event.known

    def wait_stream(self, stream: Stream) -> None:
        self.wait_event(stream)

    def synchronize(self) -> None:
        self.host |= self.known


@dataclass(frozen=True)
class Access:
    """Of the elements [first, last) of a storage, by the operation `name`."""

    first: int
    last: int
    writes: bool
    stream: Stream
    time: int
    name: str

    def conflicts(self, other: Access) -> bool:
        overlaps = self.first < other.last and other.first < self.last
        return overlaps and (self.writes or other.writes) and self.stream.known[id(other.stream)] < other.time


@dataclass
class Memory:
    storage: StorageWeakRef
    stream: Stream
    pinned: bool
    accesses: list[Access] = field(default_factory=list)


class RaceDetector(TorchDispatchMode):
    """Notes races of what runs within it in `races`. It stands for the device's current stream."""

    def __init__(self) -> None:
        super().__init__()
        self.host: Counter[int] = Counter()
        self.work = self.current = Stream(self.host)
        self.pinning = False
        self.memory: dict[int, Memory] = {}
        self.races: list[str] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let torch.cuda and pinned tensors be ours."""
        empty = torch.empty

        def allocate(*size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
            self.pinning = pin_memory
            made = empty(*size, **options)
            self.pinning = False
            return made

        monkeypatch.setattr(torch.cuda, "Stream", lambda *_: Stream(self.host))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: self.current)
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(torch, "empty", allocate)

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._check_freed()
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        time, name = self.current.queue(), str(func)
        written = [value for spec, value in zip(func._schema.arguments, args, strict=False) if _is_written(spec)]
        for tensor in _tensors((args, kwargs)):
            self._access(tensor, any(tensor is each for each in _tensors(written)), time, name)
        for tensor in _tensors(result):
            self._access(tensor, True, time, name)
        return result

    def _access(self, tensor: Tensor, writes: bool, time: int, name: str) -> None:
        storage = tensor.untyped_storage()
        memory = self.memory.get(storage._cdata)
        if memory is None:
            memory = Memory(StorageWeakRef(storage), self.current, self.pinning)
            self.memory[storage._cdata] = memory
        first, size = tensor.storage_offset(), tensor.numel() and 1
        last = first + size + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True) if size)
        access = Access(first, last, writes, self.current, time, name)
        self.races += [f"{name} after {before.name}" for before in memory.accesses if access.conflicts(before)]
        memory.accesses.append(access)

    def _check_freed(self) -> None:
        for key, memory in list(self.memory.items()):
            if memory.storage.expired():
                del self.memory[key]
                for access in () if memory.pinned else memory.accesses:
                    done = max(self.host[id(access.stream)], memory.stream.known[id(access.stream)])
                    if done < access.time:
                        self.races.append(f"freed before the end of {access.name}")


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]
