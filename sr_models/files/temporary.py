"""Folders for temporary files that are too large for memory."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

IN_MEMORY = {"tmpfs", "ramfs"}
MOUNTS = Path("/proc/self/mounts")
ELSEWHERE = Path("/var/tmp")  # noqa: S108 (kept on disk by convention; files there get no name)


def is_in_memory(folder: Path, mounts: Path = MOUNTS) -> bool:
    """Whether files in this folder take main memory, as /tmp often does on Linux. The folder need not exist yet."""
    try:
        lines = [_unescaped(line).split("\0") for line in mounts.read_text().splitlines()]
    except OSError:
        return False
    place, found = folder.resolve(), ("", "")
    for _, point, kind, *_ in (line for line in lines if len(line) > 3):
        if place.is_relative_to(point) and len(point) >= len(found[0]):
            found = point, kind
    return found[1] in IN_MEMORY


def _unescaped(line: str) -> str:
    """A line of mounts with \\0 between its fields, in which blanks are written as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), "\0".join(line.split()))


def spill_folder(preferred: Path | None = None) -> Path:
    """A folder for large temporary files: the preferred one, else the system's; or another if those are in memory."""
    usual = Path(tempfile.gettempdir())
    candidates = [*([] if preferred is None else [preferred]), usual, ELSEWHERE, Path.cwd()]
    return next((each for each in candidates if not is_in_memory(each) and (each == preferred or each.is_dir())), usual)
