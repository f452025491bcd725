"""What comes before and after the network: hidden colours filled; colours matched, detail at its strength, greys kept
grey, alpha back on.

The second stage works row by row or on all rows at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..canvas import color as colors
from ..canvas.resample_rows import Rows, resized_rows, rows_of
from ..canvas.strength import at_strength, reach
from ..canvas.transparency import fill_transparent, is_grey, to_grey
from .geometry import Size

BAND = 256  # rows that are looked at together where all of them count


def visible(image: Tensor) -> Tensor:
    """Pictures (B, 3 or 4, H, W), with the colours under alpha 0 filled from what is visible beside them.

    What is invisible then has no influence on the result. Opaque pictures are returned unchanged.
    """
    if image.shape[1] == 3:
        return image
    filled = [fill_transparent(picture[:3], picture[3:]) for picture in image]
    return torch.cat([torch.stack(filled), image[:, 3:]], dim=1)


def finished_rows(rows: Rows, picture: Tensor, size: Size, method: colors.ColorMatch, strength: float = 1.0) -> Rows:
    """A function (top, bottom) -> rows (3 or 4, n, W) in [0, 1] of the finished result.

    Args:
        rows: the same of the result before, with three channels, held in memory or on disk.
        picture: (1, 3 or 4, h, w) in [0, 1], that the result was made from, as `visible` gives it; a fourth channel
            is alpha, which is resized by itself. Where R = G = B in all its pixels, the result has R = G = B too.
        size: the result's (height, width).
        strength: how much of the network's detail it has; see `at_strength`.
    """
    matched = _matched_rows(rows, picture[:, :3], size, method)
    if strength != 1:
        matched = _blended_rows(matched, picture[:, :3], size, strength)
    if is_grey(picture[0, :3]):
        matched = _grey_rows(matched)
    if picture.shape[1] == 3:
        return matched

    def with_alpha(top: int, bottom: int) -> Tensor:
        alpha = _resized(picture[:, 3:], size, top, bottom)[0].clamp(0, 1)
        return torch.cat([matched(top, bottom), alpha])

    return with_alpha


def _grey_rows(rows: Rows) -> Rows:
    return lambda top, bottom: to_grey(rows(top, bottom))


def _matched_rows(rows: Rows, image: Tensor, size: Size, method: colors.ColorMatch) -> Rows:
    """What a row needs from its neighbours is read with it (wavelet), or summed over all rows first (AdaIN)."""
    if method == "none":
        return rows
    if method == "adain":
        bands = (rows(top, min(top + BAND, size[0])) for top in range(0, size[0], BAND))
        mean, variance = colors.moments_of(band.cpu() for band in bands)  # in float64, which not every device has
        moments = mean.to(image.device), variance.to(image.device)
        return lambda top, bottom: colors.adain_with(rows(top, bottom)[None], moments, image)[0].clamp(0, 1)

    def by_wavelet(top: int, bottom: int) -> Tensor:
        first, last = max(0, top - colors.WAVELET_REACH), min(size[0], bottom + colors.WAVELET_REACH)
        around = colors.wavelet(rows(first, last)[None], _resized(image, size, first, last))
        return around[0, :, top - first : bottom - first].clamp(0, 1)

    return by_wavelet


def _blended_rows(rows: Rows, image: Tensor, size: Size, strength: float) -> Rows:
    factors = size[0] / image.shape[-2], size[1] / image.shape[-1]
    around = reach(factors[0])

    def blended(top: int, bottom: int) -> Tensor:
        first, last = max(0, top - around), min(size[0], bottom + around)
        found = rows(first, last)[None]
        mixed = at_strength(found, _resized(image, size, first, last).clamp(0, 1), strength, factors)
        return mixed[0, :, top - first : bottom - first].clamp(0, 1)

    return blended


def _resized(image: Tensor, size: Size, top: int, bottom: int) -> Tensor:
    small = (image.shape[-2], image.shape[-1])
    return resized_rows(rows_of(image), small, size, top, bottom)
