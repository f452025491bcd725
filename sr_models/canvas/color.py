"""Match the colours of a result to the picture it was made from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from .resize import resize

ColorMatch = Literal["none", "wavelet", "adain"]
COLOR_MATCHES: tuple[ColorMatch, ...] = get_args(ColorMatch)
WAVELET_LEVELS = 5
WAVELET_REACH = 2**WAVELET_LEVELS - 1  # the distance over which pixels interact: 1 + 2 + 4 + 8 + 16
PLANE = (-2, -1)


def match(image: Tensor, reference: Tensor, method: ColorMatch) -> Tensor:
    """Return `image` with the colours of `reference`, both (B, 3, H, W) around [0, 1]; not clamped.

    The reference is the small picture that the image was made from, and may have another size.
    Raises UserError for an unknown method.
    """
    require_known(method)
    if method == "none":
        return image
    if method == "wavelet":
        return wavelet(image, resize(reference, (image.shape[-2], image.shape[-1])))
    return adain(image, reference)


def require_known(method: str) -> None:
    """Raise UserError for an unknown method."""
    if method not in COLOR_MATCHES:
        raise UserError(f"Colour match {method!r} is unknown: choose one of {', '.join(COLOR_MATCHES)}.")


def wavelet(image: Tensor, reference: Tensor) -> Tensor:
    """Combine the image's five high bands with the reference's low band: image + low(reference - image).

    The blur is linear, so one pass over the difference is enough (StableSR, arXiv 2305.07015, section 3.3).
    """
    return image + low_band(reference - image)


def low_band(image: Tensor, levels: int = WAVELET_LEVELS) -> Tensor:
    """Apply `levels` binomial blurs, the k-th with taps 2^k px apart; borders are replicated."""
    for level in range(levels):
        image = _blur(_blur(image, 2**level, dim=-1), 2**level, dim=-2)
    return image


def _blur(image: Tensor, distance: int, dim: int) -> Tensor:
    """(1, 2, 1) / 4 along one dimension, taps `distance` px apart."""
    length = image.shape[dim]
    padding = (distance, distance, 0, 0) if dim == -1 else (0, 0, distance, distance)
    padded = F.pad(image, padding, mode="replicate")
    before, after = padded.narrow(dim, 0, length), padded.narrow(dim, 2 * distance, length)
    return (before + after).mul_(0.25).add_(image, alpha=0.5)


def adain(image: Tensor, reference: Tensor) -> Tensor:
    """Give each channel of the image the reference's mean and standard deviation (arXiv 1703.06868).

    The deviation is sqrt(variance + 1e-5), so that noise in a flat channel is not amplified.
    """
    return adain_with(image, (image.mean(PLANE, keepdim=True), image.var(PLANE, keepdim=True)), reference)


def adain_with(image: Tensor, moments: tuple[Tensor, Tensor], reference: Tensor) -> Tensor:
    """`adain` for part of a picture, given the mean and variance of the whole, both (B or 1, C, 1, 1)."""
    mean, variance = moments
    normal = (image - mean) / _deviation(variance)
    return normal * _deviation(reference.var(PLANE, keepdim=True)) + reference.mean(PLANE, keepdim=True)


def moments_of(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of a picture given in parts (C, n, W): both (1, C, 1, 1) float32."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for part in parts:
        values = part.double().flatten(1)
        count += values.shape[1]
        total, squares = total + values.sum(1), squares + values.square().sum(1)
    mean = total / count
    variance = (squares - count * mean.square()) / max(1, count - 1)
    return mean.float().view(1, -1, 1, 1), variance.clamp(min=0).float().view(1, -1, 1, 1)


def _deviation(variance: Tensor) -> Tensor:
    return (variance + 1e-5).sqrt()
