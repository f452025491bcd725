"""A picture whose result does not fit in memory: from file to file, and on from where it was cut."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from ..canvas.resample_rows import Rows, resized_rows
from ..canvas.resize import target_size
from ..core.banded import BandedRun, matched_rows
from ..core.forecast import memory_of
from ..core.memory import available
from ..core.model import SRModel
from ..core.upscale import Progress
from ..errors import UserError
from ..files.picture import Picture
from ..files.row_files import RowPicture, write_rows
from ..files.spool import Spool, SpoolSize
from ..files.whole import write_whole
from ..files.write import DEEP, require_writable
from .job import Job, Options

SHARE = 4  # a quarter of what is free


def is_too_large(model: SRModel, picture: Picture, options: Options) -> bool:
    """Whether upscaling this picture in memory would take more than `options.memory` MB (None: a quarter of what
    is free). Only codecs that work locally have another way."""
    size = target_size(picture.pixels.shape[-2], picture.pixels.shape[-1], options.scale)
    limit = available(torch.device("cpu")) // SHARE if options.memory is None else options.memory * 2**20
    return model.codec.is_local and memory_of(model.recipe, size, options.scale) > limit


def run_large_job(
    model: SRModel, job: Job, picture: Picture, options: Options, progress: Progress | None = None
) -> None:
    """Enlarge the picture by bands into a spool beside the target, then write the target from it.

    The spool stays when the run is cut, and the same call goes on with it. Raises UserError as `upscale` and
    `write_picture` do.
    """
    size = target_size(picture.pixels.shape[-2], picture.pixels.shape[-1], options.scale)
    if options.compare:
        raise UserError(f"A comparison of {size[1]} x {size[0]} px does not fit in memory: leave out --compare.")
    if not torch.isfinite(picture.pixels).all():
        raise UserError("The picture holds values that are not finite numbers (NaN or infinite): repair it first.")
    require_writable(job.target, *size)
    image, color = picture.pixels[None], options.color or model.recipe.color
    run = BandedRun(model, image, size, options.tile, options.overlap, options.seed, options.batch)
    try:
        with Spool(job.target, SpoolSize(*size, channels=3), _settings(model, job.source, options)) as spool:
            for rows in run.rows(spool.finished, progress) if spool.finished < size[0] else ():
                spool.append(rows)
            rows = _with_alpha(matched_rows(spool.read, image, size, color), picture, size, job.target.suffix.lower())
            write_whole(job.target, partial(_write, job.target.suffix.lower(), rows, size, picture, options.quality))
            spool.discard()
    except OSError as error:
        raise UserError(f"{job.target} cannot be written ({error.strerror}): choose another place.") from error


def _write(suffix: str, rows: Rows, size: tuple[int, int], picture: Picture, quality: int, path: Path) -> None:
    channels = 3 if picture.alpha is None or suffix in (".jpg", ".jpeg") else 4
    bits = 16 if picture.bits == 16 and suffix in DEEP else 8
    write_rows(path, suffix, RowPicture(rows, *size, channels, bits, picture.icc_profile), quality)


def _with_alpha(rows: Rows, picture: Picture, size: tuple[int, int], suffix: str) -> Rows:
    """Rows with alpha as a fourth channel, or on a white ground for JPEG."""
    if picture.alpha is None:
        return rows
    alpha = picture.alpha[None]
    small = (alpha.shape[-2], alpha.shape[-1])

    def joined(top: int, bottom: int) -> Tensor:
        opacity = resized_rows(lambda first, last: alpha[:, :, first:last], small, size, top, bottom)[0].clamp(0, 1)
        pixels = rows(top, bottom)
        return pixels * opacity + 1 - opacity if suffix in (".jpg", ".jpeg") else torch.cat([pixels, opacity])

    return joined


def _settings(model: SRModel, source: Path, options: Options) -> dict[str, object]:
    """What the spool's rows depend on."""
    status = source.stat()
    kept = {name: asdict(options)[name] for name in ("scale", "tile", "overlap", "seed")}
    try:
        release = version("onestep-sr")
    except PackageNotFoundError:
        release = "unknown"
    dtype = str(model.denoiser.dtype)
    return kept | {
        "source": [str(source.resolve()), status.st_size, status.st_mtime_ns],
        "model": [model.recipe.name, repr(model.recipe.step), dtype],
        "release": release,
    }
