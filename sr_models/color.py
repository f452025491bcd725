"""Giving a result the colours of the picture it was made from."""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from .errors import UserError
from .image import resize

ColorMatch = Literal["none", "wavelet", "adain"]
COLOR_MATCHES: tuple[ColorMatch, ...] = get_args(ColorMatch)
WAVELET_LEVELS = 5
PLANE = (-2, -1)


def match(image: Tensor, reference: Tensor, method: ColorMatch) -> Tensor:
    """`image` with the colours of `reference`, both (B, 3, H, W) about [0, 1]; not clamped.

    The reference, which may have another size, is the small picture that the image was made from.
    Raises UserError for an unknown method.
    """
    if method == "none":
        return image
    if method == "wavelet":
        return wavelet(image, resize(reference, (image.shape[-2], image.shape[-1])))
    if method == "adain":
        return adain(image, reference)
    raise UserError(f"Colour match {method!r} is unknown: choose one of {', '.join(COLOR_MATCHES)}.")


def wavelet(image: Tensor, reference: Tensor) -> Tensor:
    """The image's five high bands on the reference's low band: image + low(reference - image).

    The blur is linear, so one pass over the difference does (StableSR, arXiv 2305.07015, section 3.3).
    """
    return image + low_band(reference - image)


def low_band(image: Tensor, levels: int = WAVELET_LEVELS) -> Tensor:
    """What is left after `levels` binomial blurs, the k-th with its taps 2^k px apart; borders replicated."""
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
    """The image with each channel's mean and standard deviation made the reference's (arXiv 1703.06868).

    The deviation is sqrt(variance + 1e-5), so that the noise of a flat channel is not blown up.
    """
    normal = (image - image.mean(PLANE, keepdim=True)) / _deviation(image)
    return normal * _deviation(reference) + reference.mean(PLANE, keepdim=True)


def _deviation(image: Tensor) -> Tensor:
    return (image.var(PLANE, keepdim=True) + 1e-5).sqrt()
