"""A picture whose result does not fit in memory: from file to file, resumed where an earlier run was interrupted."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..canvas.resample_rows import Rows
from ..core.finish import finished_rows, visible
from ..core.forecast import amount_of, memory_by_rows, memory_of
from ..core.geometry import Size
from ..core.memory import available, out_of_memory_as_user_error
from ..core.model import SRModel
from ..core.rows import Run, result_rows, result_size
from ..errors import UserError
from ..files.picture import Picture
from ..files.row_files import RowPicture, write_rows
from ..files.spool import Spool, SpoolSize, spool_of
from ..files.whole import Ready, remove_temporaries, unwritable, write_whole
from ..files.write import depth_of, has_room_for_alpha, require_writable
from .job import FileOptions, Job
from .records import fingerprint
from .release import release

SHARE = 4  # a quarter of what is free


def is_too_large(model: SRModel, picture: Picture, options: FileOptions) -> bool:
    """Whether upscaling this picture in memory would take more than `options.memory` MB (None: a quarter of what
    is free). Only codecs that work locally have another way."""
    image = (picture.pixels.shape[-2], picture.pixels.shape[-1])
    size = options.upscale.size(*image)
    limit = available(torch.device("cpu")) // SHARE if options.memory is None else options.memory * 2**20
    return model.codec.is_local and memory_of(model.recipe, size, image) > limit


def is_begun(model: SRModel, job: Job, options: FileOptions) -> bool:
    """Whether an interrupted run has left rows of the result, which would otherwise stay beside it for ever: how much
    memory is free, and so `is_too_large`, may differ from one run to the next."""
    return model.codec.is_local and not options.compare and spool_of(job.target).exists()


def as_batch(picture: Picture) -> Tensor:
    """(1, 3 or 4, H, W): the pixels, and alpha where there is any."""
    return torch.cat([picture.pixels] if picture.alpha is None else [picture.pixels, picture.alpha])[None]


def run_large_job(run: Run, job: Job, picture: Picture, options: FileOptions, ready: Ready = nullcontext) -> None:
    """Upscale the picture by bands into a spool beside the target, then write the target from it.

    The spool stays when the run is interrupted, and the same call resumes with it. Raises UserError as `upscale` and
    `write_picture` do, and before it starts if a row of tiles does not fit in memory.
    """
    batch = as_batch(picture)
    size = result_size(batch, run.options)
    way, continued = run.options.continued(batch.shape[-2], batch.shape[-1])
    image = visible(way.continued(batch))
    if options.compare:
        raise UserError(f"A comparison of {size[1]} x {size[0]} px does not fit in memory: leave out --compare.")
    require_writable(job.target, *size)
    _require_memory(run, size, (batch.shape[-2], batch.shape[-1]))
    if picture.excess is not None:
        run.notice("Values outside 0 to 1 are not kept: the result is written row by row.")
    described = replace(picture, metadata=options.described(picture, run.model))
    settings = SpoolSize(*way.whole_result, channels=3), _settings(run, job.source, options.fingerprint)
    try:
        with out_of_memory_as_user_error(), Spool(job.target, *settings) as spool:
            remove_temporaries(job.target, of_dead_only=False)
            if spool.finished < way.whole_result[0]:
                for rows in result_rows(
                    replace(run, options=continued), image[:, :3], banded=True, first=spool.finished
                ):
                    spool.append(rows)
            method = run.options.color or run.model.recipe.color
            finished = finished_rows(spool.read, image, way.whole_result, method, run.options.strength)
            rows = way.closed(finished)
            write_whole(job.target, partial(_write, described, rows, size, options.quality), ready)
            spool.discard()
    except OSError as error:
        raise unwritable(job.target, error) from error


def _require_memory(run: Run, size: Size, image: Size) -> None:
    """Raises UserError if one row of tiles is too much, as systems end a process that takes more than there is."""
    needed, free = memory_by_rows(run.model, image, run.options), available(torch.device("cpu"))
    if needed > free:
        raise UserError(
            f"A result of {size[1]} x {size[0]} px takes about {amount_of(needed)} of memory even row by row, and "
            f"{amount_of(free)} are free: choose a smaller tile or a smaller size."
        )


def _write(picture: Picture, rows: Rows, size: Size, quality: int, path: Path) -> None:
    suffix = path.suffix.lower()
    has_alpha, has_room = picture.alpha is not None, has_room_for_alpha(suffix)
    if has_alpha and not has_room:
        rows = partial(_on_white, rows)
    channels = 4 if has_alpha and has_room else 3
    bits = depth_of(picture.bits, suffix)
    write_rows(path, suffix, RowPicture(rows, *size, channels, bits, picture.icc_profile, picture.metadata), quality)


def _on_white(rows: Rows, top: int, bottom: int) -> Tensor:
    pixels, alpha = rows(top, bottom).split([3, 1])
    return pixels * alpha + 1 - alpha


def _settings(run: Run, source: Path, model: str) -> dict[str, object]:
    """What the spool's rows depend on."""
    kept = {
        name: asdict(run.options)[name] for name in ("scale", "tile", "overlap", "seed", "detail", "target", "wrap")
    }
    recipe, dtype = run.model.recipe, str(run.model.denoiser.dtype)
    return kept | {
        "source": fingerprint(source),
        "model": [recipe.name, repr(recipe.step), dtype, model],
        "release": release(),
    }
