"""Upscale only what masks mark: the model runs on the box around each, and the rest is enlarged bicubically."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..canvas.color import low_band
from ..canvas.resize import resize
from ..canvas.target import MIN_SIDE, Exact
from ..errors import UserError
from .finish import visible
from .model import SRModel
from .options import UpscaleOptions
from .report import Notice, Progress, ignored
from .rows import result_size
from .upscale import upscale

CONTEXT = 32  # px around a mask that the model also sees, and up to twice that where it fits the result's pixels better
FADE_LEVELS = 2
FADE = 2**FADE_LEVELS - 1  # px over which a mask's border is softened on either side

Span = tuple[int, int]


def upscale_regions(
    model: SRModel,
    image: Tensor,
    masks: Tensor,
    options: UpscaleOptions,
    *,
    progress: Progress | None = None,
    notice: Notice = ignored,
    **reports: Any,
) -> Tensor:
    """Upscale pictures where masks are above 0.

    Args:
        image: (B, 3 or 4, H, W) as in `upscale`.
        masks: (M, 1, h, w) in [0, 1], resized to the picture. One for all pictures, one per picture, or any number for
            one picture, such as a detector's faces, each of which then has its own box.
        progress, notice, reports: as in `upscale`. A picture whose masks are all empty is named by `notice`.

    Returns:
        As `upscale`.

    Raises:
        UserError: for another number of masks or prompts, for `wrap`, and as `upscale` does.
    """
    if options.wrap != "none":
        raise UserError(f"A region and wrap {options.wrap} do not go together: set wrap to none.")
    size, image = result_size(image, options), visible(image)
    model.require_pictures(len(image))
    result = resize(image, size).clamp(0, 1)
    marked = _marked(len(image), masks, (image.shape[-2], image.shape[-1]))
    for index in {*range(len(image))} - {index for index, _ in marked}:
        notice(f"The region of image {index + 1} is empty: it was only resized, without the model.")
    for number, (index, mask) in enumerate(marked):
        [rows, large_rows], [columns, large_columns] = map(_spans, _inside(mask), mask.shape[-2:], size)
        part = image[index : index + 1, :, slice(*rows), slice(*columns)]
        exact = Exact(large_rows[1] - large_rows[0], large_columns[1] - large_columns[0])
        heard = _for_part(progress, number, len(marked))
        chosen = replace(options, target=exact)
        found = upscale(model.only(index), part, chosen, progress=heard, notice=notice, **reports)
        place = result[index, :, slice(*large_rows), slice(*large_columns)]
        place += _enlarged(mask, size, (rows, columns), (large_rows, large_columns)) * (found[0] - place)
    return result


def _marked(pictures: int, masks: Tensor, size: Span) -> list[tuple[int, Tensor]]:
    """The masks (1, H, W) that are not empty, softened at their borders, each with the number of its picture."""
    if pictures > 1 and len(masks) not in (1, pictures):
        raise UserError(f"There are {len(masks)} regions for {pictures} images: connect one, or one per image.")
    soft = low_band(resize(masks.float(), size).clamp(0, 1), FADE_LEVELS)
    pairs = [(0, mask) for mask in soft] if pictures == 1 else [(i, soft[i % len(soft)]) for i in range(pictures)]
    return [(index, mask) for index, mask in pairs if mask.any()]


def _inside(mask: Tensor) -> tuple[Span, Span]:
    """The rows and columns of a mask (1, H, W) that are not empty."""
    rows, columns = (mask[0].any(dim).nonzero() for dim in (1, 0))
    return (int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1)


def _enlarged(mask: Tensor, size: Span, box: tuple[Span, Span], large_box: tuple[Span, Span]) -> Tensor:
    """The box of a mask (1, H, W) that is enlarged to `size`.

    Only the box is enlarged where that gives the same numbers: with powers of two, coordinates are not rounded.
    """
    (rows, columns), (large_rows, large_columns) = box, large_box
    factors = [divmod(large, side) for large, side in zip(size, mask.shape[-2:], strict=True)]
    if all(rest == 0 and factor.bit_count() == 1 for factor, rest in factors):
        part = mask[None, :, slice(*rows), slice(*columns)]
        return resize(part, (large_rows[1] - large_rows[0], large_columns[1] - large_columns[0]))[0].clamp(0, 1)
    return resize(mask[None], size)[0, :, slice(*large_rows), slice(*large_columns)].clamp(0, 1)


def _spans(inside: Span, length: int, result: int) -> tuple[Span, Span]:
    """The box's rows or columns in the picture and in the result, on whole px of both as nearly as possible."""
    first, last = inside
    before = range(max(0, first - CONTEXT), max(-1, first - 2 * CONTEXT - 1), -1)
    after = range(max(min(length, last + CONTEXT), min(length, MIN_SIDE)), min(length, last + 2 * CONTEXT) + 1)
    begin, end = (min(choices, key=lambda px: _misfit(px * result, length)) for choices in (before, after))
    return (begin, end), (round(begin * result / length), round(end * result / length))


def _misfit(product: int, length: int) -> float:
    return round(abs(product / length - round(product / length)), 6)


def _for_part(progress: Progress | None, number: int, count: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total, preview: progress(number * total + done, count * total, preview)
