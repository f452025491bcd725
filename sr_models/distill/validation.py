"""How good the present weights are, on a few pictures with a known answer."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import niqe
from ..image import resize
from ..metrics import high_frequency_power, psnr, ssim
from .data import enlarged_to, list_images
from .features import Lpips
from .objectives import Objective

PICTURES, STRIPS = 6, 3
SCALE = 4
LARGEST, MULTIPLE = 256, 128
HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "niqe": False, "lpips": False}


def better(name: str, score: float, than: float) -> bool:
    return score > than if HIGHER_IS_BETTER[name] else score < than


def validate(
    objective: Objective, folder: Path, seed: int, device: torch.device, lpips: Lpips | None = None
) -> tuple[dict[str, float], Tensor]:
    """Scores over the folder's first pictures, their top left corners of 128 or 256 px a side, shrunk bicubically to a
    quarter; and a strip of enlarged LR | result | HR, (3, H, W) in [0, 1].

    PSNR in dB and SSIM higher is better, NIQE and LPIPS (where its weights are given) lower; `detail` is the median
    of the power of fine structure relative to HR's. Raises UserError for a folder without pictures.
    """
    model, rows, strips = niqe.NiqeModel.load(), [], []
    for file in list_images(folder)[:PICTURES]:
        hr_image = _corner(file)
        lr_image = hr_image.resize([side // SCALE for side in hr_image.size], Image.Resampling.BICUBIC)
        hr, lr = (_to_tensor(image) for image in (hr_image, lr_image))
        result = objective.restore(lr.to(device), seed).float().cpu()
        rows.append(_scores(result, hr, model, lpips))
        strips.append(torch.cat([resize(lr, (hr.shape[-2], hr.shape[-1])).clamp(0, 1), result, hr], dim=-1)[0])
    scores = {name: fmean(row[name] for row in rows) for name in rows[0]}
    return scores | {"detail": median(row["detail"] for row in rows)}, _stacked(strips[:STRIPS])


def _scores(result: Tensor, hr: Tensor, model: niqe.NiqeModel, lpips: Lpips | None) -> dict[str, float]:
    detail = high_frequency_power(result[0]) / max(high_frequency_power(hr[0]), 1e-12)
    scores = {"psnr": psnr(result[0], hr[0]), "ssim": ssim(result[0], hr[0]), "niqe": niqe.score(result[0], model)}
    if lpips is not None:
        place = lpips.shift.device
        scores["lpips"] = float(lpips(result.to(place) * 2 - 1, hr.to(place) * 2 - 1))
    return scores | {"detail": detail}


def _corner(file: Path) -> Image.Image:
    image = enlarged_to(Image.open(file).convert("RGB"), MULTIPLE)
    width, height = (min(LARGEST, side // MULTIPLE * MULTIPLE) for side in image.size)
    return image.crop((0, 0, width, height))


def _stacked(strips: list[Tensor]) -> Tensor:
    width = min(strip.shape[-1] for strip in strips)
    return torch.cat([strip[..., :width] for strip in strips], dim=1)


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
