"""Finished parts of a video on disk, so that an interrupted run can resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from .spool import locked
from .whole import shortened, write_whole

SETTINGS = "settings.json"


class Segments:
    """Numbered files in a hidden folder next to the target.

    `settings` are everything that the files depend on. Those of an earlier run with the same settings are kept. A
    context manager that removes the folder while no file is finished. While it is open, no other process can open it:
    that raises UserError.
    """

    def __init__(self, target: Path, settings: Mapping[str, object]):
        self.folder = target.with_name(f".{shortened(target.name)}.frames")
        self.folder.mkdir(exist_ok=True)
        self.lock = locked(self.folder / "lock", target)
        content = json.dumps(settings, sort_keys=True)
        record = self.folder / SETTINGS
        is_same = record.is_file() and record.read_bytes() == content.encode()
        for path in self.folder.iterdir():
            if path.name != "lock" and not (is_same and (path == record or path.stem.isdigit())):
                path.unlink()
        if not is_same:
            write_whole(record, lambda temporary: temporary.write_text(content, encoding="utf-8"))

    def __getitem__(self, number: int) -> Path:
        return self.folder / f"{number:08}.nut"

    def add(self, number: int, write: Callable[[Path], None]) -> None:
        """Finish a file with write(path). Raises UserError if it cannot be written."""
        write_whole(self[number], write)

    def discard(self) -> None:
        """Remove the folder, once the video is written."""
        self.lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Segments:
        return self

    def __exit__(self, *error: object) -> None:
        if not self[0].exists():
            self.discard()
        self.lock.close()
