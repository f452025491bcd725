"""Many files through one SR model, one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from ..canvas.resize import resize
from ..core.model import SRModel
from ..core.upscale import Progress, upscale
from ..errors import UserError
from ..files.picture import Picture
from ..files.read import read_picture
from ..files.write import write_picture
from .job import Job, Options, Outcome
from .large import is_too_large, run_large_job


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
