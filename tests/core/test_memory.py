"""Free memory: limits of containers, on made-up control groups of both versions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from onestep_sr.sr_models.core import memory
from onestep_sr.sr_models.core.memory import available, container_memory

GB = 2**30
UNLIMITED_1 = 9223372036854771712  # what version 1 shows if there is no limit
NAMES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def group(folder: Path, version: int, limit: int | str, used: int, cached: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    limit_file, usage_file, cache = NAMES[version]
    (folder / limit_file).write_text(f"{limit}\n")
    (folder / usage_file).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{cache} {cached}\nfile 7\n")


def found(tmp_path: Path, *lines: str) -> int:
    (tmp_path / "cgroup").write_text("".join(f"{line}\n" for line in lines))
    return container_memory(tmp_path / "cgroup", tmp_path / "fs")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ([("", 8 * GB, GB, 0)], 7 * GB),
        ([("", 8 * GB, 3 * GB, 2 * GB)], 7 * GB),  # cached files do not count
        ([("", 2 * GB, 3 * GB, 0)], 0),
        ([("", "none", 3 * GB, 0)], None),
        ([("", "none", GB, 0), ("a", 4 * GB, GB, 0), ("a/b", "none", GB, 0)], 3 * GB),  # the middle one is tightest
        ([("", "none", GB, 0), ("a", 4 * GB, 2 * GB, 0), ("a/b", 3 * GB, 2 * GB, GB)], 2 * GB),
        ([("", 6 * GB, 5 * GB, 0), ("a", "none", 2 * GB, 0), ("a/b", 3 * GB, GB, 0)], GB),  # by the others' usage
        ([("", 5 * GB, GB, 0)], 4 * GB),  # the container sees the host's path, and its own group at the top
    ],
)
def test_the_tightest_limit_counts(tmp_path: Path, version: int, limits: list, expected: int | None) -> None:
    none = {1: UNLIMITED_1, 2: "max"}[version]
    top = tmp_path / "fs" / ("memory" if version == 1 else "")
    for path, limit, used, cached in limits:
        group(top / path, version, none if limit == "none" else limit, used, cached)
    lines = ["4:memory:/a/b", "3:cpu,cpuacct:/a/b"] if version == 1 else ["0::/a/b"]
    free = found(tmp_path, *lines)
    assert free == expected if expected is not None else free > 2**50


def test_both_versions_at_once_and_controllers_together(tmp_path: Path) -> None:
    group(tmp_path / "fs" / "memory" / "x", 1, 4 * GB, GB)
    group(tmp_path / "fs" / "y", 2, 9 * GB, GB)
    assert found(tmp_path, "2:cpu,memory:/x", "1:name=systemd:/", "0::/y") == 3 * GB


@pytest.mark.parametrize("content", ["", "x", "1:2", "0::/../../..", "0::/\n4:memory:/gone"])
def test_what_cannot_be_read_is_no_limit(tmp_path: Path, content: str) -> None:
    assert found(tmp_path, content) == sys.maxsize
    assert container_memory(tmp_path / "absent", tmp_path) == sys.maxsize


def test_free_memory_is_at_most_the_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = available(torch.device("cpu"))
    assert whole > 0
    monkeypatch.setattr(memory, "container_memory", lambda: 123)
    assert available(torch.device("cpu")) == 123
    assert memory.free_budget(torch.device("cpu")) == memory.SMALLEST_BUDGET


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can limit a process's memory")
def test_the_limit_of_the_address_space_counts() -> None:
    """In a process of its own, under `ulimit -v`: what is free is what it can then allocate, within a tenth."""
    program = (
        "import resource, torch\n"
        "from onestep_sr.sr_models.core.memory import available\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20,) * 2)\n"
        "free = available(torch.device('cpu'))\n"
        "bytearray(int(free * 0.9))\n"
        "try: bytearray(int(free * 1.1))\n"
        "except MemoryError: print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.stdout == "refused\n", done.stderr
