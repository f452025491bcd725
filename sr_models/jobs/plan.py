"""From files, folders and globs to a list of jobs."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

from ..errors import UserError
from ..files.write import WRITABLE
from .job import Job

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"}


def plan_jobs(inputs: Iterable[str], output: Path, suffix: str | None = None) -> list[Job]:
    """One job per picture. Inputs are files, folders (with their subfolders, which the output repeats) or globs.

    The output is a folder, or a file where there is one input and the output has a picture's suffix.
    Results keep the source's name and get `suffix` (default: the source's own where it can be written,
    else `.png`). Raises UserError where an input matches nothing or a result would replace its source.
    """
    found = [pair for text in inputs for pair in _matches(text)]
    single = len(found) == 1 and output.suffix.lower() in SUFFIXES and not output.is_dir()
    if single and output.suffix.lower() not in WRITABLE:
        raise UserError(f"{output} has an ending that cannot be written: choose one of {', '.join(WRITABLE)}.")
    jobs: dict[Path, Job] = {}
    for source, inside in found:
        ending = suffix or (source.suffix if source.suffix.lower() in WRITABLE else ".png")
        target = output if single else (output / inside).with_suffix(ending)
        if target in jobs and jobs[target].source != source:
            target = target.with_name(f"{source.stem}_{source.suffix[1:]}{ending}")
        if target.resolve() == source.resolve():
            raise UserError(f"{target} would replace its own source: choose another output folder or name.")
        jobs[target] = Job(source, target)
    return list(jobs.values())


def _matches(text: str) -> list[tuple[Path, Path]]:
    """Pictures that an input means, each with its path inside the output folder."""
    path = Path(text)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        pairs = [(p, p.relative_to(path)) for p in files]
    elif path.exists():
        pairs = [(path, Path(path.name))]
    else:
        pairs = [(Path(p), Path(Path(p).name)) for p in sorted(glob.glob(text, recursive=True)) if Path(p).is_file()]
    if not pairs:
        raise UserError(f"{text} matches no picture: check the name.")
    return pairs
