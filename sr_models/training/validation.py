"""How good the present weights are, on a few pictures with a known answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..canvas.resize import resize
from ..files.listing import list_images
from ..measures import niqe
from ..measures.lpips import find_lpips
from ..measures.metrics import high_frequency_power, psnr, ssim
from ..measures.musiq import find_musiq
from .data import enlarged_to

Judge = Callable[[Tensor, Tensor], Tensor]  # result and HR, both (1, 3, H, W) in [0, 1], to a score
Restore = Callable[[Tensor], Tensor]  # LR (1, 3, h, w) to SR (1, 3, 4h, 4w), both in [0, 1]

PICTURES, STRIPS = 6, 3
SCALE = 4
LARGEST, MULTIPLE = 256, 128
JUDGES = ("lpips", "musiq")  # have weights that are in no package
HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "niqe": False, "lpips": False, "musiq": True}


def better(name: str, score: float, than: float) -> bool:
    return score > than if HIGHER_IS_BETTER[name] else score < than


def find_judges(lpips: Path | None, musiq: Path | None) -> dict[str, Judge]:
    """LPIPS and MUSIQ, each where its weights are, as `find_lpips` and `find_musiq` take them."""
    judges: dict[str, Judge] = {}
    if (distance := find_lpips(lpips)) is not None:
        judges["lpips"] = lambda result, hr: distance(result * 2 - 1, hr * 2 - 1)
    if (beauty := find_musiq(musiq)) is not None:
        judges["musiq"] = lambda result, hr: beauty(result)
    return judges


def validate(restore: Restore, folder: Path, judges: dict[str, Judge]) -> tuple[dict[str, float], Tensor]:
    """Scores over the folder's first pictures, their top left corners of 128 or 256 px a side, shrunk bicubically to a
    quarter; and a strip of enlarged LR | result | HR, (3, H, W) in [0, 1].

    PSNR in dB, SSIM and MUSIQ higher is better, NIQE and LPIPS lower; `detail` is the median of the power of fine
    structure relative to HR's. Judges work on the CPU. Raises UserError for a folder without pictures.
    """
    model, rows, strips = niqe.NiqeModel.load(), [], []
    for file in list_images(folder)[:PICTURES]:
        hr_image = _corner(file)
        lr_image = hr_image.resize([side // SCALE for side in hr_image.size], Image.Resampling.BICUBIC)
        hr, lr = (_to_tensor(image) for image in (hr_image, lr_image))
        result = restore(lr).float().cpu()
        rows.append(_scores(result, hr, model, judges))
        strips.append(torch.cat([resize(lr, (hr.shape[-2], hr.shape[-1])).clamp(0, 1), result, hr], dim=-1)[0])
    scores = {name: fmean(row[name] for row in rows) for name in rows[0]}
    return scores | {"detail": median(row["detail"] for row in rows)}, _stacked(strips[:STRIPS])


def _scores(result: Tensor, hr: Tensor, model: niqe.NiqeModel, judges: dict[str, Judge]) -> dict[str, float]:
    detail = high_frequency_power(result[0]) / max(high_frequency_power(hr[0]), 1e-12)
    scores = {"psnr": psnr(result[0], hr[0]), "ssim": ssim(result[0], hr[0]), "niqe": niqe.score(result[0], model)}
    return scores | {name: float(judge(result, hr)) for name, judge in judges.items()} | {"detail": detail}


def _corner(file: Path) -> Image.Image:
    image = enlarged_to(Image.open(file).convert("RGB"), MULTIPLE)
    width, height = (min(LARGEST, side // MULTIPLE * MULTIPLE) for side in image.size)
    return image.crop((0, 0, width, height))


def _stacked(strips: list[Tensor]) -> Tensor:
    width = min(strip.shape[-1] for strip in strips)
    return torch.cat([strip[..., :width] for strip in strips], dim=1)


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
