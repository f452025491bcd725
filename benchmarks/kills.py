"""Runs that are killed at random moments, and what the next run makes of them, with the bundled model.

    python -m onestep_sr.benchmarks.kills --count 50 --seed 1

`folder` upscales pictures of all formats, `bands` one picture whose result goes through a spool, by rows. Each run is
the command line in a process of its own, forked from one that has imported everything, and is ended by SIGKILL after
a random share of the time that an unbroken run takes. Counted are files under a result's name that are not whole right
after the kill, runs after it that do not end with the same bytes as an unbroken run, and files that are left over.
POSIX only.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from onestep_sr.sr_models.commands import cli
from onestep_sr.sr_models.jobs import (
    plan,  # noqa: F401  (imported once, in the process that all runs are forked from)
    run,  # noqa: F401
)
from PIL import Image

PHOTO = Path(__file__).resolve().parents[1] / "demo" / "photo.png"
FORMATS = ("a.png", "b.jpg", "c.webp", "d.tif", "e.gif", "sub/f.png")
KINDS = {"folder": [], "bands": ["--memory", "1"]}
RECORDS = ".onestep-sr"
Files = dict[str, bytes]


@dataclass
class Tally:
    """What became of the kills of one kind; `moments` counts how far the runs had got."""

    kills: int = 0
    broken: int = 0
    differing: int = 0
    left_over: int = 0
    moments: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        moments = ", ".join(f"{count} {moment}" for moment, count in sorted(self.moments.items()))
        return (
            f"{self.kills} kills ({moments}): {self.broken} with broken files, {self.differing} resumed with other "
            f"bytes, {self.left_over} with files left over"
        )


def write_inputs(folder: Path, kind: str) -> Path:
    photo = Image.open(PHOTO).convert("RGB")
    if kind == "bands":
        photo.resize((48, 400)).save(folder / "tall.png")
        return folder
    (folder / "sub").mkdir()
    for number, name in enumerate(FORMATS):
        photo.crop((number, number, number + 40, number + 32)).save(folder / name)
    return folder


def upscale(folder: Path, output: Path, kind: str) -> None:
    """The command line, in a forked process."""
    with open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        sys.argv = ["onestep-sr", "upscale", str(folder), "-o", str(output), *KINDS[kind]]
        torch.set_num_threads(1)
        cli.main()


def files_of(output: Path) -> tuple[Files, set[str]]:
    """Results with their bytes, and the names of all other files; records count by their names."""
    paths = [path for path in output.rglob("*") if path.is_file()]
    names = {str(path.relative_to(output)): path for path in paths}
    results = {name for name, path in names.items() if not path.name.startswith(".") and RECORDS not in path.parts}
    return {name: names[name].read_bytes() for name in results}, set(names) - results


class Killer:
    """Runs of one kind, whole and killed."""

    def __init__(self, folder: Path, kind: str, seed: int):
        self.folder, self.kind, self.random = folder, kind, random.Random(seed)
        self.inputs = folder / "in"
        self.inputs.mkdir(parents=True)
        write_inputs(self.inputs, kind)
        start = time.monotonic()
        self._run(folder / "whole")
        self.seconds = time.monotonic() - start
        self.results, self.others = files_of(folder / "whole")
        if len(self.results) != len([path for path in self.inputs.rglob("*") if path.is_file()]):
            raise SystemExit("The unbroken run has failed.")

    def _run(self, output: Path, seconds: float | None = None) -> int | None:
        """The exit code, or minus a signal's number; killed after `seconds`, unless the run has ended before."""
        process = multiprocessing.get_context("fork").Process(target=upscale, args=(self.inputs, output, self.kind))
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
        process.join()
        return process.exitcode

    def kill(self, tally: Tally) -> None:
        """One run that is killed, and the next one, which has to finish it."""
        output = self.folder / f"out{tally.kills}"
        code = self._run(output, self.random.uniform(0, self.seconds))
        tally.kills += 1
        tally.moments[self._moment(code, output)] += 1
        results, _ = files_of(output)
        tally.broken += any(self.results.get(name) != content for name, content in results.items())
        code = self._run(output)
        results, others = files_of(output)
        tally.differing += code != 0 or results != self.results
        tally.left_over += others != self.others

    def _moment(self, code: int | None, output: Path) -> str:
        if code != -signal.SIGKILL:
            return "after the end"
        results, others = files_of(output)
        if not results and not others:
            return "before any file"
        if len(results) == len(self.results):
            return "after the last file"
        return "with rows on disk" if any(name.endswith(".part.json") for name in others) else "between"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", choices=KINDS, action="append")
    options = parser.parse_args()
    failed = False
    for kind in options.kind or KINDS:
        with tempfile.TemporaryDirectory() as folder:
            killer, tally = Killer(Path(folder) / kind, kind, options.seed), Tally()
            for _ in range(options.count):
                killer.kill(tally)
        print(f"{kind}: {tally}", flush=True)
        failed |= bool(tally.broken or tally.differing or tally.left_over)
    sys.exit(failed)


if __name__ == "__main__":
    main()
