"""Available memory, and handling of out-of-memory errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from ..errors import UserError

Result = TypeVar("Result")
UNKNOWN = 2 * 2**30  # assumed if the system does not report it
SHARE = 0.7  # of free memory; the rest is left for other work and allocator overhead
SMALLEST_BUDGET = 64 * 2**20
CGROUPS = Path("/sys/fs/cgroup")


class GroupFiles(NamedTuple):
    """Names in a control group of Linux, which differ between its two versions."""

    mount: str
    limit: str
    usage: str
    cache: str


VERSION_1 = GroupFiles("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = GroupFiles("", "memory.max", "memory.current", "inactive_file")


def available(device: torch.device) -> int:
    """Free memory of a device in bytes, as reported by the GPU's driver or the system."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type == "cpu":
        return min(_system_memory(), container_memory(), _address_space())
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


def _address_space() -> int:
    """What `ulimit -v` leaves to this process, in bytes; very large where there is no such limit."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError, ValueError):
        return sys.maxsize
    return sys.maxsize if limit == resource.RLIM_INFINITY else max(0, limit - used)


def container_memory(own: Path = Path("/proc/self/cgroup"), root: Path = CGROUPS) -> int:
    """Free memory within the limits of this process's control groups, such as a container's, in bytes.

    `own` lists the groups, and `root` is where they are mounted. A group's limit holds for all groups in it, so the
    tightest counts. Very large where there is no limit.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return sys.maxsize
    left = [sys.maxsize]
    for _, controllers, path in (line for line in lines if len(line) == 3):
        files = VERSION_1 if "memory" in controllers.split(",") else VERSION_2 if not controllers else None
        if files is not None:
            top, parts = root / files.mount, Path(path.lstrip("/")).parts
            # A container may see the host's path and yet have its own group at the top.
            left += [_left_in_group(top.joinpath(*parts[:depth]), files) for depth in range(len(parts) + 1)]
    return min(left)


def _left_in_group(group: Path, files: GroupFiles) -> int:
    """The group's limit less its usage. Cached files in the usage are no obstacle: the system drops them on demand."""
    try:
        limit = int((group / files.limit).read_text())  # "max", or in version 1 a huge number, if there is none
        used = int((group / files.usage).read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, limit - max(0, used - int(statistics.get(files.cache, 0))))
    except (OSError, ValueError):
        return sys.maxsize


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA has its own error type; CPUs, MPS and drivers only have messages, which differ between Linux and Windows."""
    phrases = ("out of memory", "not enough memory", "can't allocate memory")
    # the name of torch.OutOfMemoryError that torch before 2.5 has too
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or any(p in str(error).lower() for p in phrases)


@contextmanager
def out_of_memory_as_user_error() -> Iterator[None]:
    """Turn an out-of-memory error into a UserError that says what to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError("There is not enough memory: choose a smaller tile or a smaller scale.") from error


def release_cached() -> None:
    """Release torch's cached memory to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def within_budget(run: Callable[[int], Result], budget: int) -> Result:
    """run(budget) with a budget in bytes, which is halved each time memory runs out, down to SMALLEST_BUDGET.

    Raises what `run` raises when memory runs out with the smallest budget.
    """
    while True:
        try:
            return run(budget)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or budget <= SMALLEST_BUDGET:
                raise
        release_cached()
        budget = max(SMALLEST_BUDGET, budget // 2)


def free_budget(device: torch.device) -> int:
    """How many bytes of a device's free memory one task may use."""
    return max(SMALLEST_BUDGET, int(SHARE * available(device)))
