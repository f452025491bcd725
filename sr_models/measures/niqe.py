"""NIQE: the distance of a picture's local statistics from those of pristine photographs, without a reference.

Source: Mittal, Soundararajan, Bovik, "Making a 'Completely Blind' Image Quality Analyzer", 2013. Uses the published
model of pristine photographs, so scores can be compared with published ones (Set14's baboon: 5.7296, as in MATLAB).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError

PATCH = 96
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
LUMA = (65.481, 128.553, 24.966)  # BT.601, to the range 16 to 235
ROUNDING = 1e-9  # smaller coefficients are float64 rounding errors on flat areas
MODEL_FILE = Path(__file__).parents[1] / "weights" / "niqe.safetensors"


@dataclass(frozen=True)
class NiqeModel:
    """A multivariate Gaussian of the 36 features: mean (36,), covariance (36, 36), float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def load(cls, path: Path = MODEL_FILE) -> NiqeModel:
        """The published model."""
        tensors = load_file(path)
        return cls(tensors["mean"].double(), tensors["covariance"].double())


def score(image: Tensor, model: NiqeModel) -> float:
    """Distance of a picture (3, H, W) in [0, 1] from pristine photographs; lower is better.

    sqrt((m1 - m2)^T ((C1 + C2) / 2)^-1 (m1 - m2)), equation 10. Raises UserError if a side is under 96 px.
    """
    features = patch_features(image)
    if features.isfinite().any():
        mean, whole = features.nanmean(dim=0), features[features.isfinite().all(dim=1)]
        mean = torch.where(mean.isnan(), model.mean, mean)
    else:  # NIQE is not defined for a flat picture: return a finite, bad score
        mean, whole = torch.zeros_like(model.mean), features[:0]
    covariance = whole.T.cov() if len(whole) > 1 else torch.zeros_like(model.covariance)
    inverse = torch.linalg.pinv((covariance + model.covariance) / 2)
    difference = mean - model.mean
    return float((difference @ inverse @ difference).clamp_min(0).sqrt())


def patch_features(image: Tensor) -> Tensor:
    """36 features of each 96 px patch, (patches, 36) float64; NaN for flat patches."""
    height, width = (side // PATCH * PATCH for side in image.shape[-2:])
    if min(height, width) < PATCH:
        size = f"{image.shape[-1]} x {image.shape[-2]} px"
        raise UserError(f"The picture is {size}, too small for NIQE: each side must be at least {PATCH} px.")
    luma = rounded_luma(image)[None, None, :height, :width]
    fine, coarse = normalised(luma), normalised(halved(luma))
    return torch.cat([_patch_statistics(fine, PATCH), _patch_statistics(coarse, PATCH // 2)], dim=1)


def rounded_luma(image: Tensor) -> Tensor:
    """Y of MATLAB's `rgb2ycbcr`, rounded to 8-bit steps: (3, H, W) in [0, 1] -> (H, W) float64 in 16 .. 235."""
    weights = torch.tensor(LUMA, dtype=torch.float64, device=image.device)
    return (torch.einsum("chw,c->hw", image.double(), weights) + 16).round()


def halved(luma: Tensor) -> Tensor:
    """Halve (1, 1, H, W) like MATLAB's `imresize`: bicubic, antialiased, mirrored at the borders."""
    margin = 4
    for dim in (-2, -1):
        first, last = luma.narrow(dim, 0, margin), luma.narrow(dim, luma.shape[dim] - margin, margin)
        luma = torch.cat([first.flip(dim), luma, last.flip(dim)], dim)
    half = F.interpolate(luma, scale_factor=0.5, mode="bicubic", antialias=True)
    return half[..., margin // 2 : -margin // 2, margin // 2 : -margin // 2]


def normalised(luma: Tensor) -> Tensor:
    """Mean-subtracted, contrast-normalised coefficients, (1, 1, H, W); equations 1 to 3."""
    taps = torch.exp(-0.5 * (torch.arange(-3, 4, dtype=luma.dtype) / (7 / 6)) ** 2)
    window = torch.outer(taps, taps)[None, None] / taps.sum() ** 2

    def local_mean(x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (3, 3, 3, 3), mode="replicate"), window)

    mean = local_mean(luma)
    deviation = (local_mean(luma**2) - mean**2).abs().sqrt()
    coefficients = (luma - mean) / (deviation + 1)
    return torch.where(coefficients.abs() < ROUNDING, 0, coefficients)


def _patch_statistics(coefficients: Tensor, patch: int) -> Tensor:
    """18 features per patch: shape and spread of the coefficients and of their products with four neighbours."""
    patches = F.unfold(coefficients, patch, stride=patch)[0].T.unflatten(1, (patch, patch))
    shape, left, right = fit_asymmetric(patches.flatten(1))
    columns = [shape, (left + right) / 2]
    for shift in SHIFTS:
        product = patches * torch.roll(patches, shift, dims=(-2, -1))  # wraps around within the patch
        shape, left, right = fit_asymmetric(product.flatten(1))
        mean = (right - left) * torch.exp(torch.lgamma(2 / shape) - torch.lgamma(1 / shape))
        columns += [shape, mean, left, right]
    return torch.stack(columns, dim=1)


def fit_asymmetric(samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit asymmetric generalised Gaussians to rows (n, samples) by their moments: shape, left and right scale.

    The shape is the nearest of 0.2, 0.201, ..., 10. All three are NaN for a row without negative or positive samples.
    """
    left = _root_mean_square(samples, samples < 0)
    right = _root_mean_square(samples, samples > 0)
    ratio = left / right
    observed = samples.abs().mean(dim=1) ** 2 / samples.square().mean(dim=1)
    wanted = observed * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shapes = torch.arange(200, 10_001, dtype=samples.dtype) / 1000
    moments = torch.exp(2 * torch.lgamma(2 / shapes) - torch.lgamma(1 / shapes) - torch.lgamma(3 / shapes))
    shape = shapes[(moments - wanted[:, None]).abs().argmin(dim=1)]
    to_scale = torch.exp(0.5 * (torch.lgamma(1 / shape) - torch.lgamma(3 / shape)))
    shape = torch.where(ratio.isnan(), ratio, shape)
    return shape, left * to_scale, right * to_scale


def _root_mean_square(samples: Tensor, chosen: Tensor) -> Tensor:
    """Root mean square of the chosen samples of each row; NaN if there are none."""
    return ((samples.square() * chosen).sum(dim=1) / chosen.sum(dim=1)).sqrt()
