"""Validate the current weights on a few pictures whose HR version is known."""

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
from ..measures import dists, niqe, vgg
from ..measures.dists import Dists
from ..measures.lpips import find_lpips
from ..measures.metrics import high_frequency_power, psnr, ssim
from ..measures.musiq import find_musiq
from ..measures.pretrained import search
from .data import enlarged_to

Metric = Callable[[Tensor, Tensor], Tensor]  # result and HR, both (1, 3, H, W) in [0, 1], to a score
Restore = Callable[[Tensor], Tensor]  # LR (1, 3, h, w) to SR (1, 3, 4h, 4w), both in [0, 1]

PICTURES, STRIPS = 6, 3
SCALE = 4
LARGEST, MULTIPLE = 256, 128
NETWORK_METRICS = ("lpips", "dists", "musiq")  # need weights that no package contains
HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "niqe": False, "lpips": False, "dists": False, "musiq": True}


def better(name: str, score: float, than: float) -> bool:
    return score > than if HIGHER_IS_BETTER[name] else score < than


def find_metrics(lpips: Path | None, musiq: Path | None) -> dict[str, Metric]:
    """LPIPS, DISTS and MUSIQ, each if its weights are found. DISTS is searched in LPIPS's folder; other arguments are
    as for `find_lpips` and `find_musiq`."""
    metrics: dict[str, Metric] = {}
    if (distance := find_lpips(lpips)) is not None:
        metrics["lpips"] = distance.of_unit_range
    if lpips is not None and search(lpips, dists.FILES) and search(lpips, vgg.FILES):
        metrics["dists"] = Dists.load(lpips)
    if (quality := find_musiq(musiq)) is not None:
        metrics["musiq"] = lambda result, hr: quality(result)
    return metrics


def validate(restore: Restore, folder: Path, metrics: dict[str, Metric]) -> tuple[dict[str, float], Tensor]:
    """Mean scores, and strips of enlarged LR | result | HR, (3, H, W) in [0, 1].

    Uses the top left corners, 128 or 256 px a side, of the folder's first pictures, shrunk bicubically to a quarter.
    For PSNR (in dB), SSIM and MUSIQ, higher is better; for NIQE and LPIPS, lower. `detail` is the median power of
    fine structure relative to HR's. Metrics run on the CPU. Raises UserError for a folder without pictures.
    """
    model, rows, strips = niqe.NiqeModel.load(), [], []
    for file in list_images(folder)[:PICTURES]:
        hr_image = _corner(file)
        lr_image = hr_image.resize([side // SCALE for side in hr_image.size], Image.Resampling.BICUBIC)
        hr, lr = (_to_tensor(image) for image in (hr_image, lr_image))
        result = restore(lr).float().cpu()
        rows.append(_scores(result, hr, model, metrics))
        strips.append(torch.cat([resize(lr, (hr.shape[-2], hr.shape[-1])).clamp(0, 1), result, hr], dim=-1)[0])
    scores = {name: fmean(row[name] for row in rows) for name in rows[0]}
    return scores | {"detail": median(row["detail"] for row in rows)}, _stacked(strips[:STRIPS])


def _scores(result: Tensor, hr: Tensor, model: niqe.NiqeModel, metrics: dict[str, Metric]) -> dict[str, float]:
    detail = high_frequency_power(result[0]) / max(high_frequency_power(hr[0]), 1e-12)
    scores = {"psnr": psnr(result[0], hr[0]), "ssim": ssim(result[0], hr[0]), "niqe": niqe.score(result[0], model)}
    return scores | {name: float(metric(result, hr)) for name, metric in metrics.items()} | {"detail": detail}


def _corner(file: Path) -> Image.Image:
    image = enlarged_to(Image.open(file).convert("RGB"), MULTIPLE)
    width, height = (min(LARGEST, side // MULTIPLE * MULTIPLE) for side in image.size)
    return image.crop((0, 0, width, height))


def _stacked(strips: list[Tensor]) -> Tensor:
    width = min(strip.shape[-1] for strip in strips)
    return torch.cat([strip[..., :width] for strip in strips], dim=1)


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
