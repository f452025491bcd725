"""Many files through one SR model, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..canvas.resize import resize
from ..core.memory import available
from ..core.model import SRModel, Stage
from ..core.options import UpscaleOptions
from ..core.report import Notice, Progress, ignored
from ..core.rows import Run
from ..core.tile_policy import TilePolicy
from ..core.upscale import upscale
from ..errors import UserError
from ..files.animation import Film
from ..files.listing import caption_of
from ..files.picture import Picture, PictureSequence
from ..files.read import read_pictures
from ..files.whole import remove_temporaries
from ..files.write import metadata_left_out, profile_left_out, require_room, write_picture, write_pictures
from . import records
from .job import FileOptions, Job, Outcome
from .large import as_batch, is_too_large, run_large_job

Finishing = Callable[[Path, Path], AbstractContextManager[object]]
DECODING = 48  # bytes a pixel at most, from the file's samples to a batch of four channels, measured


def run_jobs(
    model: SRModel,
    jobs: Iterable[Job],
    options: FileOptions,
    progress: Progress | None = None,
    notice: Notice = ignored,
    policy: TilePolicy | None = None,
) -> Iterator[Outcome]:
    """Do the jobs in turn. A file that fails is reported and the others continue; a finished one is skipped.

    Finished is a result of the same source with the same settings (see `records`). A result of the same source with
    other settings, or of an earlier version of it, is replaced. A file that was made from another source or by another
    program, or that was changed since, is kept and reported unless `overwrite`.

    All files share one tile policy: where memory ran out once, no later file tries that much again. `policy` is for
    a run of several calls with this model. `notice` hears what each outcome carries as its notices, too. A model that
    keeps its text encoders uses the text next to a picture as its prompt (`caption_of`).
    """
    policy = policy or TilePolicy()
    for job in jobs:
        begin, heard = time.perf_counter(), _Heard(notice)
        try:
            caption = None if model.prompted is None else caption_of(job.source)
            settings = records.settings_of(job, model, options, caption)
            if _is_finished(job, settings, options):
                yield Outcome(job, "skipped")
                continue
            ready = partial(records.noted, job, settings, options.overwrite)
            run_job(model.with_prompt(caption), job, options, progress, heard, policy, ready)
        except UserError as error:
            named = str(job.source) in str(error)
            reason = str(error) if named else f"{job.source}: {error}"
            yield Outcome(job, "failed", reason=reason, notices=heard.notices)
        else:
            yield Outcome(job, "done", time.perf_counter() - begin, notices=heard.notices)


def _is_finished(job: Job, settings: dict[str, Any], options: FileOptions) -> bool:
    """Raises UserError for a file that this program must not replace."""
    if options.overwrite:
        return False
    results = [job.target, job.comparison] if options.compare else [job.target]
    return [records.own_state(result, job.source, settings) for result in results] == ["finished"] * len(results)


class _Heard:
    """Notices of one file, each passed on once."""

    def __init__(self, notice: Notice):
        self.notice, self.notices = notice, ()

    def __call__(self, sentence: str) -> None:
        if sentence not in self.notices:
            self.notices = (*self.notices, sentence)
            self.notice(sentence)


def run_job(
    model: SRModel,
    job: Job,
    options: FileOptions,
    progress: Progress | None = None,
    notice: Notice = ignored,
    policy: TilePolicy | None = None,
    ready: Finishing = lambda result, written: nullcontext(),
) -> None:
    """Read, upscale and write one file, all frames or pages of it; nothing is written where any of it fails.

    `ready` makes the context in which a result's path is given to the file that is written.
    """
    options, pictures = options.for_model(model), read_pictures(job.source)
    require_room(job.target, pictures.kind, len(pictures))
    _require_memory(job.source, pictures)
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{job.target.parent} cannot be created ({error.strerror}): choose another output.") from error
    remove_temporaries(job.target)
    run = Run(model.at_detail(options.upscale.detail), options.upscale, policy or TilePolicy(), progress, notice)
    if pictures.kind != "single":
        _run_sequence(run, job, pictures, options, ready)
        return
    [picture] = pictures
    _tell(picture, job, options, notice)
    if is_too_large(model, picture, options):
        run_large_job(run, job, picture, options, partial(ready, job.target))
        return
    large = _finished(run, options, picture)
    if options.compare:
        write_picture(job.comparison, before_after(picture, large), ready=partial(ready, job.comparison))
    write_picture(job.target, large, options.quality, partial(ready, job.target))


def _tell(picture: Picture, job: Job, options: FileOptions, notice: Notice) -> None:
    """What the result will not have of its source."""
    left_out = "" if options.strip else metadata_left_out(picture.metadata, job.target.suffix.lower())
    for sentence in (*picture.notices, left_out, profile_left_out(picture, job.target.suffix.lower())):
        if sentence:
            notice(sentence)


def _require_memory(source: Path, pictures: PictureSequence) -> None:
    """Raises UserError for a picture that is too large to be decoded, which would end the process, not the file."""
    needed, free = pictures.largest * DECODING, available(torch.device("cpu"))
    if needed > free:
        raise UserError(
            f"{source} has {pictures.largest / 1e6:.0f} megapixels, which take about {needed / 2**30:.1f} GB of memory "
            f"to read, and {free / 2**30:.1f} GB are free: split it into parts."
        )


def _run_sequence(
    run: Run,
    job: Job,
    pictures: PictureSequence,
    options: FileOptions,
    ready: Finishing,
) -> None:
    """Frames or pages, one in memory at a time."""

    def finished() -> Iterator[Picture]:
        for number, picture in enumerate(pictures):
            _tell(picture, job, options, run.notice)
            large = _finished(run, options, picture)
            if options.compare and number == 0:
                run.notice(f"The comparison shows the first of {len(pictures)} pictures.")
                write_picture(job.comparison, before_after(picture, large), ready=partial(ready, job.comparison))
            yield large

    film = Film(len(pictures), pictures.plays, options.quality)
    write_pictures(job.target, finished(), pictures.kind, film, partial(ready, job.target))


def _finished(run: Run, options: FileOptions, picture: Picture) -> Picture:
    large = enlarge(run.model, picture, run.options, run.progress, run.notice, run.policy)
    return replace(large, metadata=options.described(picture, run.model))


def enlarge(
    model: SRModel,
    picture: Picture,
    options: UpscaleOptions,
    progress: Progress | None = None,
    notice: Notice = ignored,
    policy: TilePolicy | None = None,
    stage: Stage | None = None,
) -> Picture:
    """The picture upscaled in memory, alpha and all; values outside [0, 1] are resized bicubically and stay with it.
    Raises UserError as `upscale` does."""
    reports: dict[str, Any] = {"progress": progress, "notice": notice, "policy": policy, "stage": stage}
    result = upscale(model, as_batch(picture), options, **reports)[0]
    excess = None if picture.excess is None else resize(picture.excess[None], (result.shape[-2], result.shape[-1]))[0]
    alpha = result[3:] if picture.alpha is not None else None
    return replace(picture, pixels=result[:3], alpha=alpha, excess=excess)


def before_after(small: Picture, large: Picture) -> Picture:
    """The small picture enlarged bicubically, and the large one, side by side."""
    size = (large.pixels.shape[-2], large.pixels.shape[-1])
    before = resize(small.pixels[None], size)[0].clamp(0, 1)
    return replace(large, pixels=torch.cat([before, large.pixels], dim=-1), alpha=None, excess=None)
