"""What made each result: a small file per result, in a hidden folder beside the results.

A result counts as finished only where its source and settings are those of the run. A record is written just before
the result gets its name, so that a process that is killed leaves both or neither; it knows its result by size and time.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from ..core.model import SRModel
from ..errors import UserError
from ..files.whole import remove_temporaries, write_whole
from .job import FileOptions, Job

FOLDER = ".onestep-sr"
KEPT = 4  # records of one result: of the file before, and of processes that write it at once
CHUNK = 2**20


@dataclass(frozen=True)
class Entry:
    """One writing of a result: from which file, with which settings, and how the result is known.

    beside: the source's path from the result's folder, which stays true if both are moved or copied together; empty
    if there is none, as on another drive.
    """

    source: str
    settings: dict[str, Any]
    size: int
    time: int
    beside: str = ""

    def is_of(self, result: Path) -> bool:
        try:
            status = result.stat()
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (self.size, self.time)

    def is_from(self, source: Path, settings: dict[str, Any]) -> bool:
        """Whether it was made from this file, whatever is in it now, or from a file with the same content."""
        return self.source == os.path.abspath(source) or self.settings.get("source") == settings["source"]


def settings_of(job: Job, model: SRModel, options: FileOptions, caption: str | None = None) -> dict[str, Any]:
    """Everything that a result depends on, as JSON has it. `caption` is the picture's own prompt."""
    upscale = {name: value for name, value in asdict(options.upscale).items() if name != "batch"}
    settings = {
        "source": fingerprint(job.source),
        "model": [model.recipe.name, repr(model.recipe.step), str(model.denoiser.dtype), options.fingerprint],
        "quality": options.quality,
        "strip": options.strip,
    }
    own = {} if caption is None else {"caption": caption}
    return json.loads(json.dumps(settings | own | upscale))


def own_state(result: Path, source: Path, settings: dict[str, Any]) -> Literal["missing", "finished", "outdated"]:
    """Whether a result is there, and was made from this source with these settings. Raises UserError for a file that
    was made from another place and content, or by another program."""
    if not os.path.lexists(result):
        return "missing"
    own = _own_entry(result)
    if own is None or not own.is_from(source, settings):
        known = f"was made from {own.source}" if own else f"no record says that it was made from {source}"
        raise UserError(f"{result} exists, and {known}: add --overwrite, or choose another output.")
    return "finished" if own.settings == settings else "outdated"


@contextmanager
def noted(job: Job, settings: dict[str, Any], overwrite: bool, result: Path, written: Path) -> Iterator[None]:
    """Record what makes a result from the file that is written; it gets the result's name within this context, which
    one process enters at a time.

    Raises UserError as `own_state` does, as another process may have been faster, and if the folder for records cannot
    be created.
    """
    path = _record_of(result)
    try:
        path.parent.mkdir(exist_ok=True)
    except FileExistsError as error:
        raise UserError(
            f"{path.parent} is not a folder, but records of results need a folder of that name: rename it, or choose "
            "another output."
        ) from error
    with _alone_in(path.parent):
        if not overwrite:
            own_state(result, job.source, settings)
        status = written.stat()
        source = os.path.abspath(job.source)
        entry = Entry(source, settings, status.st_size, status.st_mtime_ns, _beside(result, job.source))
        entries = [*read_entries(result), entry][-KEPT:]
        remove_temporaries(path)
        content = json.dumps({"result": result.name, "made": [asdict(each) for each in entries]})
        write_whole(path, lambda temporary: temporary.write_text(content, encoding="utf-8"))
        yield


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """One process at a time, by a lock on the folder itself. Where that cannot be had, the records only become less
    certain: two processes that finish one result at once may leave it without one."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sources_of(path: Path) -> list[Path]:
    """What a file was made from, if it is a result that nobody has changed: the path at that time, and the file that
    is there now if both were moved or copied together."""
    own = _own_entry(path)
    if own is None:
        return []
    moved = Path(os.path.realpath(path.parent), own.beside)
    return [Path(own.source), *([moved] if own.beside and moved.is_file() else [])]


def _beside(result: Path, source: Path) -> str:
    folder = os.path.realpath(source.parent)
    try:
        return Path(os.path.relpath(folder, os.path.realpath(result.parent)), source.name).as_posix()
    except ValueError:  # Windows has no path from one drive to another
        return ""


def _own_entry(result: Path) -> Entry | None:
    """The record of a file as it is now."""
    return next((entry for entry in reversed(read_entries(result)) if entry.is_of(result)), None)


def read_entries(result: Path) -> list[Entry]:
    """The records of a result; none where they are missing or broken."""
    try:
        content = json.loads(_record_of(result).read_text(encoding="utf-8"))
        return [Entry(**entry) for entry in content["made"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []


def _record_of(result: Path) -> Path:
    name = hashlib.sha256(os.fsencode(result.name)).hexdigest()[:24]
    return result.parent / FOLDER / f"{name}.json"


def fingerprint(path: Path) -> str:
    """A hash of a file's content, computed once while size and time stay; empty if it cannot be read, or is a device
    or pipe that may have no end: reading the picture will report that."""
    try:
        status = path.stat()
        return _hash(path, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else ""
    except OSError:
        return ""


@lru_cache(maxsize=64)
def _hash(path: Path, size: int, time: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for _ in range(0, size, CHUNK):  # no more: what the system shows as an empty file may have no end
            digest.update(file.read(CHUNK))
    return digest.hexdigest()
