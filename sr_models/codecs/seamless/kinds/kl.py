"""AutoencoderKL with latent diffusion's names (ComfyUI) or diffusers', Flux.2's and the asymmetric one, and VQ-f4."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....networks.vq_autoencoder import Quantizer
from ..layers import Convolution, Downsample, Layer, Local, Quantization, Upsample
from .modules import (
    attention,
    blocks_of,
    changes,
    conv3x3,
    convolution_in,
    convolution_out,
    levels,
    middle,
    pointwise,
    require,
    residual_block,
)


def fits(_: Any) -> bool:
    """What no other kind fits is checked module by module."""
    return True


def encoder(autoencoder: Any) -> Iterator[Layer]:
    network = autoencoder.encoder
    yield convolution_in(network)
    for level in levels(network, "down"):
        yield from _level(level)
    yield from middle(network)
    yield convolution_out(network)
    quant_conv = getattr(autoencoder, "quant_conv", None)
    if quant_conv is not None:
        yield Convolution(pointwise(quant_conv))
    norm = _patch_norm(autoencoder)
    if norm is not None:
        yield Local(Packing(norm), 0, (norm.num_features // 2, norm.num_features), down=2)


def decoder(autoencoder: Any) -> Iterator[Layer]:
    network = autoencoder.decoder
    norm = _patch_norm(autoencoder)
    if norm is not None:
        yield Local(Unpacking(norm), 0, (norm.num_features, norm.num_features // 4), up=2)
    quantizer = getattr(autoencoder, "quantize", None)
    if quantizer is not None:
        require(isinstance(quantizer, Quantizer))
        yield Quantization(quantizer, quantizer.embedding.num_embeddings)
    post_quant_conv = getattr(autoencoder, "post_quant_conv", None)
    if post_quant_conv is not None:
        yield Convolution(pointwise(post_quant_conv))
    yield convolution_in(network)
    yield from middle(network)
    for level in network.up_blocks if hasattr(network, "up_blocks") else reversed(network.up):
        yield from _level(level)
    yield convolution_out(network)


def _patch_norm(autoencoder: Any) -> nn.BatchNorm2d | None:
    """Flux.2's norm of 2x2 patches of the latent, where the autoencoder itself applies it: in diffusers, a pipeline
    does."""
    norm = getattr(autoencoder, "bn", None)
    if norm is None or getattr(getattr(autoencoder, "config", None), "batch_norm_eps", None) is not None:
        return None
    require(list(autoencoder.ps) == [2, 2] and isinstance(norm, nn.BatchNorm2d) and not norm.affine)
    return norm


@dataclass(frozen=True)
class Packing:
    """The mean in 2x2 patches, normalised by the statistics of a BatchNorm: (1, 2c, h, w) -> (1, 4c, h/2, w/2)."""

    norm: nn.BatchNorm2d

    def __call__(self, moments: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(moments[:, : self.norm.num_features // 4], 2)
        return F.batch_norm(patches, *_statistics(self.norm, patches), eps=self.norm.eps)


@dataclass(frozen=True)
class Unpacking:
    """The inverse of `Packing`: (1, 4c, h, w) -> (1, c, 2h, 2w)."""

    norm: nn.BatchNorm2d

    def __call__(self, patches: Tensor) -> Tensor:
        mean, variance = (moment[:, None, None] for moment in _statistics(self.norm, patches))
        return F.pixel_shuffle(patches * torch.sqrt(variance + self.norm.eps) + mean, 2)


def _statistics(norm: nn.BatchNorm2d, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,), fixed by training, in the precision of the work like everything that a host computes."""
    mean, variance = (moment for moment in (norm.running_mean, norm.running_var) if moment is not None)
    return mean.to(like), variance.to(like)


def _level(level: Any) -> Iterator[Layer]:
    """The blocks of one resolution, each followed by its attention if any, then the resampling if any."""
    blocks = blocks_of(level)
    attentions = list(getattr(level, "attentions", getattr(level, "attn", ()))) or [None] * len(blocks)
    for block, attends in zip(blocks, attentions, strict=True):
        yield residual_block(block)
        if attends is not None:
            yield attention(attends)
    for change in changes(level, "downsample"):
        yield Downsample(conv3x3(change.conv, stride=2, padding=0))
    for change in changes(level, "upsample"):
        yield Upsample(conv3x3(change.conv))
