"""Many files through one SR model, one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from ..canvas.resize import resize
from ..core.model import SRModel
from ..core.options import UpscaleOptions
from ..core.report import Notice, Progress, ignored
from ..core.rows import Run
from ..core.tile_policy import TilePolicy
from ..core.upscale import upscale
from ..errors import UserError
from ..files.picture import Picture
from ..files.read import read_picture
from ..files.write import write_picture
from .job import FileOptions, Job, Outcome
from .large import as_batch, is_too_large, run_large_job


def run_jobs(
    model: SRModel,
    jobs: Iterable[Job],
    options: FileOptions,
    progress: Progress | None = None,
    notice: Notice = ignored,
    policy: TilePolicy | None = None,
) -> Iterator[Outcome]:
    """Do the jobs in turn. A file that fails is reported and the others continue; a finished one is skipped.

    All files share one tile policy: where memory ran out once, no later file tries that much again. `policy` is for
    a run of several calls with this model.
    """
    policy = policy or TilePolicy()
    for job in jobs:
        if job.target.exists() and not options.overwrite:
            yield Outcome(job, "skipped")
            continue
        begin = time.perf_counter()
        try:
            run_job(model, job, options, progress, notice, policy)
        except UserError as error:
            named = str(job.source) in str(error)
            yield Outcome(job, "failed", reason=str(error) if named else f"{job.source}: {error}")
        else:
            yield Outcome(job, "done", time.perf_counter() - begin)


def run_job(
    model: SRModel,
    job: Job,
    options: FileOptions,
    progress: Progress | None = None,
    notice: Notice = ignored,
    policy: TilePolicy | None = None,
) -> None:
    """Read, upscale and write one picture; nothing is written where any of it fails."""
    picture = read_picture(job.source)
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{job.target.parent} cannot be created ({error.strerror}): choose another output.") from error
    if is_too_large(model, picture, options):
        run_large_job(Run(model, options.upscale, policy or TilePolicy(), progress, notice), job, picture, options)
        return
    large = enlarge(model, picture, options.upscale, progress, notice, policy)
    if options.compare:
        write_picture(job.comparison, before_after(picture, large))
    write_picture(job.target, large, quality=options.quality)


def enlarge(
    model: SRModel,
    picture: Picture,
    options: UpscaleOptions,
    progress: Progress | None = None,
    notice: Notice = ignored,
    policy: TilePolicy | None = None,
) -> Picture:
    """The picture upscaled in memory, alpha and all. Raises UserError as `upscale` does."""
    result = upscale(model, as_batch(picture), options, progress=progress, notice=notice, policy=policy)[0]
    return replace(picture, pixels=result[:3], alpha=result[3:] if picture.alpha is not None else None)


def before_after(small: Picture, large: Picture) -> Picture:
    """The small picture enlarged bicubically, and the large one, side by side."""
    size = (large.pixels.shape[-2], large.pixels.shape[-1])
    before = resize(small.pixels[None], size)[0].clamp(0, 1)
    return replace(large, pixels=torch.cat([before, large.pixels], dim=-1), alpha=None)
