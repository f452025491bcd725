"""Output and progress bars in a terminal."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..jobs.job import Outcome


def say(line: str) -> None:
    sys.stdout.write(f"{on_one_line(line)}\n")


def warn(line: str) -> None:
    sys.stderr.write(f"{on_one_line(line)}\n")


def on_one_line(text: str) -> str:
    """Control characters, which names of files may contain, as escapes: a terminal would obey them."""
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char
        for char in text
    )


def use_any_terminal() -> None:
    """Let no terminal end a batch: characters that its encoding lacks are shown as escapes, and what is printed is lost
    if there is no terminal, if it was closed, or if a file in its place is full."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (it stays open)
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Forgiving(stream))


class Forgiving:
    """A stream that goes to the null device from the first write on that fails."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError:
            self._leave()
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError:
            self._leave()

    def _leave(self) -> None:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self.stream.fileno())
        os.close(nothing)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class FileAndTileBars:
    """A context manager with two progress bars, for files and for tiles of the current file, or frames of a video.
    Prints finished files."""

    def __init__(self, files: int):
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bars = Progress(*columns, TimeRemainingColumn(), transient=True)
        self.files = self.bars.add_task("files", total=files)
        self.tiles = self.bars.add_task("tiles or frames", total=None)

    def file_done(self, outcome: Outcome) -> Outcome:
        self.bars.advance(self.files)
        self.bars.reset(self.tiles, total=None)
        if outcome.status == "done":
            line = f"{outcome.job.source} -> {outcome.job.target} ({outcome.seconds:.2f} s)"
            self.bars.console.print(on_one_line(line), soft_wrap=True, markup=False, highlight=False)
        return outcome

    def tile_done(self, done: int, total: int, preview: Tensor) -> None:
        self.bars.update(self.tiles, completed=done, total=total)

    def __enter__(self) -> FileAndTileBars:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()


@contextmanager
def byte_bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar for one download. Yields a callback (bytes so far, total bytes)."""
    with Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(), transient=True) as bar:
        task = bar.add_task("bytes", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)
