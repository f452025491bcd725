"""NIQE: how unlike clean photographs a picture's local statistics are, without a reference.

Source: Mittal, Soundararajan, Bovik, "Making a Completely Blind Image Quality Analyzer", 2013. The model
of clean photographs is our own, fitted on this project's training photos: scores compare with one
another, not with published NIQE figures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import UserError
from .metrics import grey

PATCH = 96
SHARP = 0.75  # patches at least this sharp, against the sharpest of their picture, model clean photographs
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
MODEL_FILE = Path(__file__).parents[1] / "weights" / "niqe.safetensors"


@dataclass(frozen=True)
class NiqeModel:
    """A multivariate Gaussian of the 36 features: mean (36,), covariance (36, 36), float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def load(cls, path: Path = MODEL_FILE) -> NiqeModel:
        """The shipped model, or another that `save` wrote."""
        tensors = load_file(path)
        return cls(tensors["mean"].double(), tensors["covariance"].double())

    def save(self, path: Path, fitted_on: str) -> None:
        """Write a float32 safetensors file that says which pictures it was fitted on."""
        tensors = {"mean": self.mean.float(), "covariance": self.covariance.float()}
        save_file(tensors, path, metadata={"niqe": json.dumps({"fitted_on": fitted_on})})


def score(image: Tensor, model: NiqeModel) -> float:
    """Distance of a picture (3, H, W) in [0, 1] from clean photographs; lower is better.

    sqrt((m1 - m2)^T ((C1 + C2) / 2)^-1 (m1 - m2)), equation 10. Raises UserError under 96 px a side.
    """
    features, _ = patch_features(image)
    mean = features.mean(dim=0)
    covariance = features.T.cov() if len(features) > 1 else torch.zeros_like(model.covariance)
    inverse = torch.linalg.pinv((covariance + model.covariance) / 2)
    difference = mean - model.mean
    return float((difference @ inverse @ difference).clamp_min(0).sqrt())


def fit(images: Iterable[Tensor]) -> NiqeModel:
    """The model of clean photographs from their sharp patches; pictures (3, H, W) in [0, 1]."""
    sharp = []
    for image in images:
        features, sharpness = patch_features(image)
        sharp.append(features[sharpness > SHARP * sharpness.max()])
    features = torch.cat(sharp)
    return NiqeModel(features.mean(dim=0), features.T.cov())


def patch_features(image: Tensor) -> tuple[Tensor, Tensor]:
    """36 features of each 96 px patch, (patches, 36), and its sharpness, (patches,)."""
    height, width = (side // PATCH * PATCH for side in image.shape[-2:])
    if min(height, width) < PATCH:
        size = f"{image.shape[-1]} x {image.shape[-2]} px"
        raise UserError(f"The picture is {size}, too small for NIQE: choose one of at least {PATCH} px a side.")
    luma = grey(image.double())[None, None, :height, :width] * 255
    half = F.interpolate(luma, scale_factor=0.5, mode="bicubic", antialias=True)
    fine, deviation = normalised(luma)
    coarse, _ = normalised(half)
    features = torch.cat([_patch_statistics(fine, PATCH), _patch_statistics(coarse, PATCH // 2)], dim=1)
    return features, F.avg_pool2d(deviation, PATCH).flatten()


def normalised(luma: Tensor) -> tuple[Tensor, Tensor]:
    """Mean-subtracted, contrast-normalised coefficients and the local deviation, (1, 1, H, W); equations 1 to 3."""
    taps = torch.exp(-0.5 * (torch.arange(-3, 4, dtype=luma.dtype) / (7 / 6)) ** 2)
    window = torch.outer(taps, taps)[None, None] / taps.sum() ** 2

    def local_mean(x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (3, 3, 3, 3), mode="replicate"), window)

    mean = local_mean(luma)
    deviation = (local_mean(luma**2) - mean**2).abs().sqrt()
    return (luma - mean) / (deviation + 1), deviation


def _patch_statistics(coefficients: Tensor, patch: int) -> Tensor:
    """18 features a patch: shape and spread of the coefficients and of their products with four neighbours."""

    def patches(x: Tensor) -> Tensor:
        return F.unfold(x, patch, stride=patch)[0].T

    shape, left, right = fit_asymmetric(patches(coefficients))
    columns = [shape, (left + right) / 2]
    for shift in SHIFTS:
        product = coefficients * torch.roll(coefficients, shift, dims=(-2, -1))
        shape, left, right = fit_asymmetric(patches(product))
        mean = (right - left) * torch.exp(torch.lgamma(2 / shape) - torch.lgamma(1 / shape))
        columns += [shape, mean, left, right]
    return torch.stack(columns, dim=1)


def fit_asymmetric(samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Asymmetric generalised Gaussians fitted to rows (n, samples) by their moments: shape, left and right scale."""
    left = _root_mean_square(samples, samples < 0)
    right = _root_mean_square(samples, samples > 0)
    ratio = left / right
    observed = samples.abs().mean(dim=1) ** 2 / samples.square().mean(dim=1).clamp_min(1e-12)
    wanted = observed * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shapes = torch.arange(0.2, 10, 0.001, dtype=samples.dtype)
    moments = torch.exp(2 * torch.lgamma(2 / shapes) - torch.lgamma(1 / shapes) - torch.lgamma(3 / shapes))
    shape = shapes[torch.searchsorted(moments, wanted).clamp(max=len(shapes) - 1)]
    to_scale = torch.exp(0.5 * (torch.lgamma(1 / shape) - torch.lgamma(3 / shape)))
    return shape, left * to_scale, right * to_scale


def _root_mean_square(samples: Tensor, chosen: Tensor) -> Tensor:
    count = chosen.sum(dim=1).clamp_min(1)
    return ((samples.square() * chosen).sum(dim=1) / count).sqrt().clamp_min(1e-6)
