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
from .objectives import Objective

PICTURES, STRIPS = 6, 3
SCALE = 4
LARGEST, MULTIPLE = 256, 128
HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "niqe": False}


def better(name: str, score: float, than: float) -> bool:
    return score > than if HIGHER_IS_BETTER[name] else score < than


def validate(objective: Objective, folder: Path, seed: int, device: torch.device) -> tuple[dict[str, float], Tensor]:
    """Scores over the folder's first pictures, their top left corners of 128 or 256 px a side, shrunk bicubically to a
    quarter; and a strip of enlarged LR | result | HR, (3, H, W) in [0, 1].

    PSNR in dB and SSIM higher is better, NIQE lower; `detail` is the median of the power of fine structure
    relative to HR's. Raises UserError for a folder without pictures.
    """
    model, rows, strips = niqe.NiqeModel.load(), [], []
    for file in list_images(folder)[:PICTURES]:
        hr_image = _corner(file)
        lr_image = hr_image.resize([side // SCALE for side in hr_image.size], Image.Resampling.BICUBIC)
        hr, lr = (_to_tensor(image).to(device) for image in (hr_image, lr_image))
        result = objective.restore(lr, seed).float()
        detail = high_frequency_power(result[0]) / max(high_frequency_power(hr[0]), 1e-12)
        rows.append(
            (psnr(result[0], hr[0]), ssim(result[0].cpu(), hr[0].cpu()), niqe.score(result[0].cpu(), model), detail)
        )
        strips.append(torch.cat([resize(lr, (hr.shape[-2], hr.shape[-1])).clamp(0, 1), result, hr], dim=-1)[0].cpu())
    psnrs, ssims, niqes, details = zip(*rows, strict=True)
    scores = {"psnr": fmean(psnrs), "ssim": fmean(ssims), "niqe": fmean(niqes), "detail": median(details)}
    return scores, _stacked(strips[:STRIPS])


def _corner(file: Path) -> Image.Image:
    image = enlarged_to(Image.open(file).convert("RGB"), MULTIPLE)
    width, height = (min(LARGEST, side // MULTIPLE * MULTIPLE) for side in image.size)
    return image.crop((0, 0, width, height))


def _stacked(strips: list[Tensor]) -> Tensor:
    width = min(strip.shape[-1] for strip in strips)
    return torch.cat([strip[..., :width] for strip in strips], dim=1)


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
