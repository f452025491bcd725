"""Many files through one SR model: what to do, doing it, and what became of each."""

from __future__ import annotations

import glob
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from .canvas.color import ColorMatch
from .canvas.resize import resize
from .errors import UserError
from .image_files import WRITABLE, Picture, read_picture, write_picture
from .large_job import is_too_large, run_large_job
from .sr_model import SRModel
from .upscale import Progress, upscale

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"}


@dataclass(frozen=True)
class Job:
    source: Path
    target: Path

    @property
    def comparison(self) -> Path:
        """Where `Options.compare` puts the before/after picture."""
        return self.target.with_name(f"{self.target.stem}.compare.png")


@dataclass(frozen=True)
class Options:
    """What is done to every file; see `upscale` for the first six, `is_too_large` for `memory`."""

    scale: float = 4.0
    tile: int | None = None
    overlap: int | None = None
    color: ColorMatch | None = None
    seed: int = 0
    batch: int | None = None
    memory: int | None = None
    quality: int = 95
    overwrite: bool = False
    compare: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of one job: how long it took, and why it failed."""

    job: Job
    status: Literal["done", "skipped", "failed"]
    seconds: float = 0.0
    reason: str = ""


def plan_jobs(inputs: Iterable[str], output: Path, suffix: str | None = None) -> list[Job]:
    """One job a picture. Inputs are files, folders (with their subfolders, which the output repeats) or globs.

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
    """Pictures that an input stands for, each with its path inside the output folder."""
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


def run_jobs(
    model: SRModel, jobs: Iterable[Job], options: Options, progress: Progress | None = None
) -> Iterator[Outcome]:
    """Do the jobs in turn. A file that fails is reported and the rest goes on; a finished one is skipped."""
    for job in jobs:
        if job.target.exists() and not options.overwrite:
            yield Outcome(job, "skipped")
            continue
        begin = time.perf_counter()
        try:
            run_job(model, job, options, progress)
        except UserError as error:
            named = str(job.source) in str(error)
            yield Outcome(job, "failed", reason=str(error) if named else f"{job.source}: {error}")
        else:
            yield Outcome(job, "done", time.perf_counter() - begin)


def run_job(model: SRModel, job: Job, options: Options, progress: Progress | None = None) -> None:
    """Read, enlarge and write one picture; nothing is written where any of it fails."""
    picture = read_picture(job.source)
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{job.target.parent} cannot be made ({error.strerror}): choose another output.") from error
    if is_too_large(model, picture, options):
        run_large_job(model, job, picture, options, progress)
        return
    large = enlarge(model, picture, options, progress)
    if options.compare:
        write_picture(job.comparison, before_after(picture, large))
    write_picture(job.target, large, quality=options.quality)


def enlarge(model: SRModel, picture: Picture, options: Options, progress: Progress | None = None) -> Picture:
    """The picture `options.scale` times as large, in memory, alpha and all. Raises UserError as `upscale` does."""
    channels = [picture.pixels] if picture.alpha is None else [picture.pixels, picture.alpha]
    result = upscale(
        model,
        torch.cat(channels)[None],
        options.scale,
        tile=options.tile,
        overlap=options.overlap,
        color=options.color,
        seed=options.seed,
        batch=options.batch,
        progress=progress,
    )[0]
    return replace(picture, pixels=result[:3], alpha=result[3:] if picture.alpha is not None else None)


def before_after(small: Picture, large: Picture) -> Picture:
    """The small picture enlarged bicubically, and the large one, side by side."""
    size = (large.pixels.shape[-2], large.pixels.shape[-1])
    before = resize(small.pixels[None], size)[0].clamp(0, 1)
    return replace(large, pixels=torch.cat([before, large.pixels], dim=-1), alpha=None)
