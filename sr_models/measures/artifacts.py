"""Marks of what an upscaler adds on inputs where the right answer is known, in 8-bit levels unless said otherwise.

An upscaler maps (1, 3, h, w) to (1, 3, 4h, 4w), both in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

from ..canvas.resize import resize

SCALE = 4
LEVELS = 255.0
BORDER = 8  # px of the result, left out everywhere
CYCLES = 6
SHIFT = (3, 2)  # LR px, down and right
Upscaler = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Artifacts:
    """Marks of one upscaler; 0 is best for all.

    Attributes:
        flat: largest standard deviation of the result of a grey, a black and a white picture.
        gradient: standard deviation of the result of a smooth gradient from the gradient itself.
        grey: mean spread (largest minus smallest of R, G, B) of the results of grey pictures.
        shift: mean difference between the result of a shifted picture and the shifted result.
        back: mean difference between the input and the result shrunk back by area.
        contrast: growth of the standard deviation after six times enlarging and shrinking back, as a share.
    """

    flat: float
    gradient: float
    grey: float
    shift: float
    back: float
    contrast: float


def artifacts(upscaler: Upscaler, pictures: list[Tensor]) -> Artifacts:
    """Measure an upscaler on made pictures and on LR pictures (1, 3, h, w), sides from 16 px."""
    return Artifacts(
        flat=flat(upscaler),
        gradient=gradient(upscaler),
        grey=fmean(grey_spread(upscaler, picture) for picture in pictures),
        shift=fmean(shift(upscaler, picture) for picture in pictures),
        back=fmean(back(upscaler, picture) for picture in pictures),
        contrast=fmean(contrast_growth(upscaler, picture) for picture in pictures),
    )


def flat(upscaler: Upscaler, side: int = 32) -> float:
    values = (128 / LEVELS, 0.0, 1.0)
    return max(float(_inside(upscaler(torch.full((1, 3, side, side), v))).std()) * LEVELS for v in values)


def gradient(upscaler: Upscaler, side: int = 48) -> float:
    """A quarter of the range over the width, darker to the left in red and blue, and to the right in green."""
    ramp = torch.linspace(0.375, 0.625, side).expand(1, 1, side, side)
    image = torch.cat([ramp, 1 - ramp, ramp], dim=1)
    right = resize(image, (side * SCALE, side * SCALE))
    return float((_inside(upscaler(image)) - _inside(right)).std()) * LEVELS


def grey_spread(upscaler: Upscaler, picture: Tensor) -> float:
    grey = picture.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1).contiguous()
    result = upscaler(grey)
    return float((result.amax(dim=1) - result.amin(dim=1)).mean()) * LEVELS


def shift(upscaler: Upscaler, picture: Tensor) -> float:
    down, right = SHIFT
    moved = upscaler(picture[..., down:, right:])
    still = upscaler(picture)[..., down * SCALE :, right * SCALE :]
    border = 4 * BORDER  # more, because the picture's edge has moved
    difference = (moved - still)[..., border:-border, border:-border]
    return float(difference.abs().mean()) * LEVELS


def back(upscaler: Upscaler, picture: Tensor) -> float:
    return float((F.avg_pool2d(upscaler(picture), SCALE) - picture).abs().mean()) * LEVELS


def contrast_growth(upscaler: Upscaler, picture: Tensor) -> float:
    seen = picture
    for _ in range(CYCLES):
        seen = F.avg_pool2d(upscaler(seen), SCALE).clamp(0, 1)
    return float(seen.std() / picture.std().clamp_min(1e-6)) - 1


def grid(picture: Tensor) -> float:
    """How strongly a picture (3, H, W) repeats every 4 px: the deviation over the mean of fine structure's 16 means.

    Fine structure is |x - Gaussian(2 px)(x)|; its mean is taken for each pair of row and column modulo 4. About .01
    for photographs, over .1 for a visible grid.
    """
    taps = torch.exp(-0.5 * (torch.arange(-8, 9, dtype=torch.float32) / 2) ** 2)
    kernel = (taps / taps.sum()).expand(3, 1, 1, -1)
    padded = F.pad(picture[None].float(), (8,) * 4, mode="replicate")
    smooth = F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)
    fine = _inside(picture[None] - smooth).abs().mean(dim=(0, 1))
    return float(unevenness(phase_means(fine)))


def phase_means(maps: Tensor) -> Tensor:
    """The means of maps (..., H, W) at each pair of row and column modulo 4, over all maps: (4, 4)."""
    height, width = (side // SCALE * SCALE for side in maps.shape[-2:])
    cut = maps[..., :height, :width]
    return cut.reshape(-1, height // SCALE, SCALE, width // SCALE, SCALE).mean(dim=(0, 1, 3))


def unevenness(values: Tensor) -> Tensor:
    """The deviation over the mean, of values that are not negative."""
    return values.std(correction=0) / values.mean().clamp_min(1e-6)


def _inside(picture: Tensor) -> Tensor:
    return picture[..., BORDER:-BORDER, BORDER:-BORDER]
