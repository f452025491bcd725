"""GroupNorm of a whole map that is processed in bands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import changes_weights, unwrapped

EXACT_IN_ONE_STEP = ("cpu", "cuda")  # batch_norm supports half-precision bands with float32 statistics there
PIXELS_OF_A_SUM = 16_384
FRAMES_NORM = 4  # dimensions of the weight (C, 1, 1, 1) of a norm that takes (1, C, frames, rows, W)


class WholeNorm:
    """A GroupNorm whose statistics are collected band by band with `measure`, and applied once all bands are measured.

    Without a module it does nothing, for maps that the next layer does not normalise.
    """

    def __init__(self, norm: nn.Module | None):
        self.norm: Any = norm
        self.measured: list[tuple[int, Tensor, Tensor]] = []
        self.parameters: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def measure(self, band: Tensor) -> None:
        """Record the statistics of a band (1, C, rows, W) of the map."""
        if self.norm is None:
            return
        # CPUs sum in plain float32, which loses precision in long sums.
        rows = max(1, PIXELS_OF_A_SUM // band.shape[3]) if band.device.type == "cpu" else band.shape[2]
        for part in band.split(rows, dim=2):
            self.measured.append((part.shape[2] * part.shape[3], *group_moments(part, unwrapped(self.norm).num_groups)))

    def activated(self, band: Tensor) -> Tensor:
        """silu(norm(band)); the band itself without a module."""
        return band if self.norm is None else F.silu(self.apply(band), inplace=True)

    def apply(self, band: Tensor) -> Tensor:
        """norm(band): a new tensor of the band's shape (1, C, rows, W) and precision."""
        if self.parameters is None:
            self.parameters = (*self._statistics(band), *affine(self.norm, band))
        mean, variance, weight, bias = self.parameters
        function = F.batch_norm if band.device.type in EXACT_IN_ONE_STEP else normalized
        return function(band, mean, variance, weight, bias, eps=unwrapped(self.norm).eps)

    def _statistics(self, band: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance per channel, (C,) float32: statistics of the bands, combined in float64.

        They stay on the device, because a transfer would wait for all work on it.
        """
        mean, variance = self.measured[0][1:] if len(self.measured) == 1 else combined(self.measured)
        groups = unwrapped(self.norm).num_groups
        mean, variance = (moment[:, None].expand(groups, band.shape[1] // groups) for moment in (mean, variance))
        return mean.reshape(-1), variance.reshape(-1)


class PixelNorm(WholeNorm):
    """A norm over the channels of each pixel, which needs no statistics of the map."""

    def measure(self, band: Tensor) -> None:
        pass

    def apply(self, band: Tensor) -> Tensor:
        if self.norm.gamma.ndim == FRAMES_NORM:
            return self.norm(band.unsqueeze(2)).squeeze(2)
        return self.norm(band)


def norm_of_map(norm: nn.Module | None) -> WholeNorm:
    """A new norm for a map; for None it does nothing."""
    return PixelNorm(norm) if hasattr(norm, "gamma") else WholeNorm(norm)


def combined(measured: Sequence[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and variance (groups,) of all pixels, from (pixels, mean, variance) of each part."""
    counts, *moments = zip(*measured, strict=True)
    device = moments[0][0].device
    at = torch.device("cpu") if device.type == "mps" else device  # Metal has no float64
    share = (torch.tensor(counts, dtype=torch.float64)[:, None] / sum(counts)).to(at, non_blocking=True)
    means, variances = (torch.stack(moment).to(at).double() for moment in moments)
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean).square())).sum(0)
    return mean.float().to(device), variance.float().to(device)


def group_moments(band: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each group of a band (1, C, rows, W): float32 (groups,), whatever its precision."""
    if band.device.type != "cpu":
        return precise_moments(band, groups)
    # Ten times faster than var_mean on a CPU. With float32 weights it returns float32 moments.
    one, zero = torch.ones(band.shape[1]), torch.zeros(band.shape[1])
    pixels = band.shape[2] * band.shape[3]
    _, mean, inverse_deviation = torch.native_group_norm(band, one, zero, 1, band.shape[1], pixels, groups, 0.0)
    return mean[0], inverse_deviation[0].pow(-2)


def precise_moments(band: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(band.float().unflatten(1, (groups, -1)), dim=(0, 2, 3, 4), correction=0)
    return mean, variance


def normalized(band: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """batch_norm's formula in float32, rounded once; parameters are (C,) float32."""
    scale = weight * (variance + eps).rsqrt()
    shift = bias - mean * scale
    return (band.float() * scale[:, None, None]).add_(shift[:, None, None]).to(band.dtype)


def affine(norm: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias (C,) as the norm applies them, float32 on the device of `like`, a band (1, C, rows, W)."""
    plain: Any = unwrapped(norm)
    if changes_weights(plain):
        return _probed(norm, like)
    if plain.weight is None:
        return torch.ones(like.shape[1], device=like.device), torch.zeros(like.shape[1], device=like.device)
    weight, bias = (parameter.detach().to(like.device, torch.float32) for parameter in (plain.weight, plain.bias))
    return weight, bias


def _probed(norm: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Derive weight and bias from the module's output for a row of pixels 1, -1 and six times 0 in every channel.

    Their mean is 0 and their variance 1/4, so the outputs are bias + 2 weight, bias - 2 weight and bias.
    """
    # ComfyUI casts weights to the input's precision, so float32 loses nothing.
    dtype = torch.float32 if getattr(norm, "comfy_cast_weights", None) is not None else like.dtype
    pixels = torch.tensor([1.0, -1.0, 0, 0, 0, 0, 0, 0], dtype=dtype, device=like.device)
    output = norm(pixels.expand(1, like.shape[1], 1, -1).contiguous())[0, :, 0].float()
    weight = (output[:, 0] - output[:, 1]) / 2 * (1 / 4 + unwrapped(norm).eps) ** 0.5
    return weight, output[:, 2].clone()
