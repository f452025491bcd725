"""AutoencoderKL with latent diffusion's names (ComfyUI) or diffusers', Flux.2's too, and VQ-f4."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ....networks.vq_autoencoder import Quantizer
from ..layers import Convolution, Downsample, Layer, Packing, Quantization, Unpacking, Upsample
from .modules import attention, conv3x3, convolution_in, convolution_out, middle, pointwise, require, residual_block


def fits(_: Any) -> bool:
    """What no other kind fits is checked module by module."""
    return True


def encoder(autoencoder: Any) -> Iterator[Layer]:
    network = autoencoder.encoder
    yield convolution_in(network)
    for level in network.down_blocks if hasattr(network, "down_blocks") else network.down:
        yield from _level(level)
    yield from middle(network)
    yield convolution_out(network)
    quant_conv = getattr(autoencoder, "quant_conv", None)
    if quant_conv is not None:
        yield Convolution(pointwise(quant_conv))
    norm = _patch_norm(autoencoder)
    if norm is not None:
        yield Packing(norm)


def decoder(autoencoder: Any) -> Iterator[Layer]:
    network = autoencoder.decoder
    norm = _patch_norm(autoencoder)
    if norm is not None:
        yield Unpacking(norm)
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


def _level(level: Any) -> Iterator[Layer]:
    """The blocks of one resolution, each followed by its attention if any, then the resampling if any."""
    blocks = level.resnets if hasattr(level, "resnets") else level.block
    attentions = list(getattr(level, "attentions", getattr(level, "attn", ()))) or [None] * len(blocks)
    for block, attends in zip(blocks, attentions, strict=True):
        yield residual_block(block)
        if attends is not None:
            yield attention(attends)
    for change in _changes(level, "downsample"):
        yield Downsample(conv3x3(change.conv, stride=2, padding=0))
    for change in _changes(level, "upsample"):
        yield Upsample(conv3x3(change.conv))


def _changes(level: Any, name: str) -> list[Any]:
    one = getattr(level, name, None)
    return getattr(level, f"{name}rs", None) or ([] if one is None else [one])
