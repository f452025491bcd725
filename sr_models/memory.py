"""How much memory there is, and telling when there was too little."""

from __future__ import annotations

import os

import torch

UNKNOWN = 2 * 2**30  # where a system does not say


def available(device: torch.device) -> int:
    """Bytes that a device could still give: of a GPU by its driver, of the CPU by the system."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
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
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(p in str(error).lower() for p in phrases)


def release_cached() -> None:
    """Give what torch keeps for later back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
