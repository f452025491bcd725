"""Compare upscalers on a folder of HR pictures."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.table import Table
from torch import Tensor

from ..canvas.degradation import Degradation
from ..canvas.resize import resize
from ..errors import UserError
from ..files.listing import list_images
from ..files.read import read_picture
from . import niqe
from .metrics import high_frequency_power, psnr, ssim

SCALE = 4
Upscaler = Callable[[Tensor], Tensor]
Degrade = Callable[[Image.Image, int], Image.Image]


@dataclass(frozen=True)
class Row:
    """Means over the pictures; `detail` and `seconds` are medians.

    `psnr` (in dB, over RGB) and `ssim` leave out a border of 8 px; for `niqe`, lower is better; `detail` is the
    power above a quarter of the Nyquist frequency, relative to HR's.
    """

    upscaler: str
    degradation: str
    psnr: float
    ssim: float
    niqe: float
    detail: float
    seconds: float


def bicubic(image: Tensor) -> Tensor:
    """(1, 3, h, w) -> (1, 3, 4h, 4w), both in [0, 1]."""
    return resize(image, (image.shape[-2] * SCALE, image.shape[-1] * SCALE)).clamp(0, 1)


def lanczos(image: Tensor) -> Tensor:
    """(1, 3, h, w) -> (1, 3, 4h, 4w), both in [0, 1]; Pillow's filter on 8-bit values."""
    small = Image.fromarray((image[0] * 255).round().byte().permute(1, 2, 0).numpy())
    return _to_tensor(small.resize((small.width * SCALE, small.height * SCALE), Image.Resampling.LANCZOS))


def shrink(hr: Image.Image, index: int) -> Image.Image:
    """Pillow's bicubic to a quarter of each side: 8 bits, antialiased."""
    return hr.resize((hr.width // SCALE, hr.height // SCALE), Image.Resampling.BICUBIC)


def mixed(hr: Image.Image, index: int) -> Image.Image:
    """The training degradation without its clean share, seeded by the picture's index in the folder."""
    return Degradation(scale=SCALE, clean=0.0)(hr, np.random.default_rng((0, index)))


BASELINES: dict[str, Upscaler] = {"bicubic": bicubic, "lanczos": lanczos}
DEGRADATIONS: dict[str, Degrade] = {"bicubic": shrink, "mixed": mixed}


def evaluate(upscalers: dict[str, Upscaler], folder: Path, degradations: dict[str, Degrade]) -> list[Row]:
    """A row per degradation and upscaler, over all pictures of the folder.

    An upscaler maps (1, 3, h, w) to (1, 3, 4h, 4w), float32 in [0, 1]; the result may be on any device. A
    degradation maps an 8-bit HR picture and its index in the folder to an 8-bit LR picture. HR sides are cropped
    to multiples of 4 px. Raises UserError for a folder without pictures, and for a picture that is broken or has a
    side under 96 px.
    """
    model = niqe.NiqeModel.load()
    return [
        _row(name, kind, list(_measure(upscaler, folder, degrade, model)))
        for kind, degrade in degradations.items()
        for name, upscaler in upscalers.items()
    ]


def _measure(upscaler: Upscaler, folder: Path, degrade: Degrade, model: niqe.NiqeModel) -> Iterator[tuple[float, ...]]:
    for index, file in enumerate(list_images(folder)):
        hr = _open(file)
        truth, lr = _to_tensor(hr)[0], _to_tensor(degrade(hr, index))
        begin = time.perf_counter()
        result = upscaler(lr)[0].float().cpu()
        seconds = time.perf_counter() - begin
        result = (result * 255).round() / 255  # as in an 8-bit file
        detail = high_frequency_power(result) / max(high_frequency_power(truth), 1e-12)
        yield psnr(result, truth), ssim(result, truth), niqe.score(result, model), detail, seconds


def _row(upscaler: str, degradation: str, measures: list[tuple[float, ...]]) -> Row:
    psnrs, ssims, niqes, details, seconds = zip(*measures, strict=True)
    return Row(
        upscaler=upscaler,
        degradation=degradation,
        psnr=statistics.fmean(psnrs),
        ssim=statistics.fmean(ssims),
        niqe=statistics.fmean(niqes),
        detail=statistics.median(details),
        seconds=statistics.median(seconds),
    )


def _open(file: Path) -> Image.Image:
    """The picture in 8-bit RGB, sides cropped to multiples of the scale."""
    pixels = read_picture(file).pixels
    height, width = (side // SCALE * SCALE for side in pixels.shape[-2:])
    if min(height, width) < niqe.PATCH:
        raise UserError(f"{file} has {width} x {height} px: each side must be at least {niqe.PATCH} px.")
    values = (pixels[:, :height, :width] * 255).round().byte()
    return Image.fromarray(values.permute(1, 2, 0).numpy())


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def render(rows: list[Row]) -> Table:
    """The rows as a table for a terminal."""
    table = Table("degradation", "upscaler", "PSNR dB", "SSIM", "NIQE", "detail", "seconds")
    for row in rows:
        numbers = f"{row.psnr:.2f} {row.ssim:.4f} {row.niqe:.2f} {row.detail:.3f} {row.seconds:.3f}"
        table.add_row(row.degradation, row.upscaler, *numbers.split())
    return table


def to_json(rows: list[Row]) -> str:
    """A list of objects with Row's fields."""
    return json.dumps([asdict(row) for row in rows], indent=1)
