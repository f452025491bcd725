"""How much memory there is, and telling when there was too little."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from ..errors import UserError

Result = TypeVar("Result")
UNKNOWN = 2 * 2**30  # where a system does not say
SHARE = 0.7  # of what is free: other work and what allocators waste need the rest
SMALLEST_BUDGET = 64 * 2**20


def available(device: torch.device) -> int:
    """Bytes that a device could still give: of a GPU by its driver, of the CPU by the system."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type == "cpu":
        return _system_memory()
    return UNKNOWN


def _system_memory() -> int:
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return UNKNOWN


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA has its own error; CPUs (Linux and Windows word it differently), MPS and drivers only a message."""
    phrases = ("out of memory", "not enough memory", "can't allocate memory")
    # torch.OutOfMemoryError under the name that torch before 2.5 has too
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or any(p in str(error).lower() for p in phrases)


@contextmanager
def out_of_memory_as_user_error() -> Iterator[None]:
    """Turn an error of the device or the system into a sentence that says what to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError("There is not enough memory for this: choose a smaller tile or a smaller scale.") from error


def release_cached() -> None:
    """Give what torch keeps for later back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def within_budget(run: Callable[[int], Result], budget: int) -> Result:
    """run(budget), in bytes; where memory runs out all the same, with half of it, down to SMALLEST_BUDGET."""
    while True:
        try:
            return run(budget)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or budget <= SMALLEST_BUDGET:
                raise
        release_cached()
        budget = max(SMALLEST_BUDGET, budget // 2)


def free_budget(device: torch.device) -> int:
    """What one task may take of a device's free memory, in bytes."""
    return max(SMALLEST_BUDGET, int(SHARE * available(device)))
