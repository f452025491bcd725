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

from ..core.memory import available
from ..core.model import SRModel
from ..core.report import Notice, Progress, ignored
from ..core.rows import Run
from ..core.tile_policy import TilePolicy
from ..errors import UserError
from ..files.animation import Film
from ..files.formats import is_video
from ..files.listing import caption_of
from ..files.picture import Picture, PictureSequence
from ..files.read import read_pictures
from ..files.whole import remove_temporaries
from ..files.write import metadata_left_out, profile_left_out, require_room, write_picture, write_pictures
from . import records
from .enlarge import before_after, enlarge
from .job import FileOptions, Job, Outcome
from .large import is_begun, is_too_large, run_large_job

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
    options = options.for_model(model)
    run = Run(model.at_detail(options.upscale.detail), options.upscale, policy or TilePolicy(), progress, notice)
    if is_video(job.source):
        _run_video(run, job, options, ready)
        return
    pictures = read_pictures(job.source)
    require_room(job.target, pictures.kind, len(pictures))
    _require_memory(job.source, pictures)
    _make_place(job.target)
    if pictures.kind != "single":
        _run_sequence(run, job, pictures, options, ready)
        return
    [picture] = pictures
    _tell(picture, job, options, notice)
    if is_too_large(model, picture, options) or is_begun(model, job, options):
        run_large_job(run, job, picture, options, partial(ready, job.target))
        return
    large = _finished(run, options, picture)
    if options.compare:
        write_picture(job.comparison, before_after(picture, large), ready=partial(ready, job.comparison))
    write_picture(job.target, large, options.quality, partial(ready, job.target))


def _make_place(target: Path) -> None:
    """Create the target's folder, and remove what killed processes have left of the target."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{target.parent} cannot be created ({error.strerror}): choose another output.") from error
    remove_temporaries(target)


def _run_video(run: Run, job: Job, options: FileOptions, ready: Finishing) -> None:
    try:
        from .video import run_video_job
    except ImportError as error:
        raise UserError(f"{job.source} is a video, which needs PyAV 17 or newer: pip install -U av.") from error
    _make_place(job.target)
    run_video_job(run, job, options, ready)


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
