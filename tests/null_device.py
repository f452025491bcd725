"""A device without memory in place of a GPU: which tensors a run has there, how much memory they would take, and how
often it copies to and from it.

torch's meta device has shapes and no values. A GPU's rules are added to it here: operations on tensors of two devices
are noted, values that come back are zeros, and a question about one is answered yes.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from onestep_sr.sr_models.codecs.seamless import norm
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NULL = torch.device("meta")
PACKAGE = "sr_models"
COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)


class NullDevice(TorchDispatchMode):
    """Runs what is within it. `mixed`: operations on tensors of both devices; `copies`: those to and from the device
    and questions about values, for each of which a CPU waits for a GPU. Each is named by its place in our code."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: list[str] = []
        self.copies: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            self.copies.append(f"value at {_place()}")
            return True if args[0].dtype == torch.bool else 1
        if func in COPIES:
            return self._copy(func, args, kwargs)
        # A GPU takes single numbers from the CPU.
        devices = {t.device for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dim()}
        if len(devices) > 1:
            self.mixed.append(f"{func} at {_place()}")
        return func(*args, **kwargs)

    def _copy(self, func: Any, args: Any, kwargs: Any) -> Any:
        source, target = args[0], torch.device(kwargs.get("device") or args[0].device)
        if func is COPIES[0]:
            source, target = args[1], args[0].device
        if source.is_meta == (target == NULL):
            return func(*args, **kwargs)
        self.copies.append(f"{source.device} to {target} at {_place()}")
        if not source.is_meta:
            return func(*args, **kwargs)
        if func is COPIES[0]:
            return args[0].zero_()
        return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)


class DeviceMemory(NullDevice):
    """`peak`: the most bytes of tensors on the device at once, of those that the run makes. Not in it are weights, the
    workspaces of libraries, and what an allocator keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(each) for each in tree_leaves((args, kwargs))}
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if not func.is_view:
            for made in tree_leaves(result):
                if isinstance(made, Tensor) and made.is_meta and id(made) not in given:
                    self._note(made.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        for key, (known, size) in list(self.known.items()):
            if known.expired():
                del self.known[key]
                self.now -= size
        if storage._cdata not in self.known:
            self.known[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)


class FusedOperations(TorchFunctionMode):
    """Operations that one kernel of a GPU computes, and that torch takes apart for this device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.scaled_dot_product_attention, F.batch_norm) and args[0].is_meta:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def device_memory() -> Iterator[DeviceMemory]:
    """What runs within it is measured."""
    exact = mock.patch.object(norm, "EXACT_IN_ONE_STEP", (*norm.EXACT_IN_ONE_STEP, NULL.type))
    with exact, FusedOperations(), DeviceMemory() as memory:
        yield memory


def _place() -> str:
    ours = [frame for frame in traceback.extract_stack() if f"/{PACKAGE}/" in frame.filename]
    return " < ".join(f"{frame.filename.rpartition(PACKAGE)[2]}:{frame.lineno}" for frame in ours[:-4:-1])
