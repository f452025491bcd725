"""Describe an autoencoder as a flat list of layers, found in its modules by name.

Two naming schemes exist: latent diffusion's (ComfyUI's autoencoders, `networks/vq_autoencoder.py`) and diffusers'.
Nothing is imported from a host, and a wrapped module (PEFT's `base_layer`) is treated as the module that it wraps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from torch import nn

from ...errors import UserError
from ...networks.vq_autoencoder import Quantizer

# With any other value of these attributes, a module does not compute what the layers below describe.
EXPECTED = {
    "tanh_out": False,
    "output_scale_factor": 1,
    "rescale_output_factor": 1,
    "residual_connection": True,
    "scale_qk": True,
    "scale_factor": 2,
    "spatial_norm": None,
    "norm_q": None,
    "norm_k": None,
}
ACTIVATIONS = ("swish", "nonlinearity", "conv_act")


@dataclass(frozen=True)
class Convolution:
    """3x3 or 1x1, after GroupNorm and SiLU of its input if there is a norm."""

    conv: nn.Module
    norm: nn.Module | None = None


@dataclass(frozen=True)
class ResidualBlock:
    """shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x)))))); None as shortcut means the identity."""

    norm1: nn.Module
    conv1: nn.Module
    norm2: nn.Module
    conv2: nn.Module
    shortcut: nn.Module | None


@dataclass(frozen=True)
class Attention:
    """x + out(attention over all positions of norm(x)); the projections are 1x1 convolutions or linear."""

    norm: nn.Module
    query: nn.Module
    key: nn.Module
    value: nn.Module
    out: nn.Module
    heads: int


@dataclass(frozen=True)
class Upsample:
    """Nearest-neighbour x2, then a 3x3 convolution."""

    conv: nn.Module


@dataclass(frozen=True)
class Downsample:
    """Pad a row and a column of zeros at the end, then a 3x3 convolution of stride 2."""

    conv: nn.Module


@dataclass(frozen=True)
class Quantization:
    """Each pixel -> the nearest of `codes` codes."""

    quantizer: Quantizer
    codes: int


Layer = Convolution | ResidualBlock | Attention | Upsample | Downsample | Quantization


def encoder_layers(autoencoder: nn.Module) -> list[Layer]:
    """From the picture to the posterior's moments, or to the latent if the autoencoder has no posterior.

    Raises UserError for a network that these layers cannot describe.
    """
    return _checked(autoencoder, "encoder", _whole_encoder)


def decoder_layers(autoencoder: nn.Module) -> list[Layer]:
    """From the latent to the picture. Raises UserError for a network that these layers cannot describe."""
    return _checked(autoencoder, "decoder", _whole_decoder)


def unwrapped(module: nn.Module) -> Any:
    """The layer inside an adapter's wrapper, which has the channel counts."""
    return getattr(module, "base_layer", module)


def channels(module: nn.Module) -> tuple[int, int]:
    """Input and output channels of a convolution or linear layer."""
    plain = unwrapped(module)
    if isinstance(plain, nn.Linear):
        return plain.in_features, plain.out_features
    return plain.in_channels, plain.out_channels


class _UnknownError(Exception):
    """A module that the layers above cannot describe."""


def _checked(autoencoder: nn.Module, part: str, describe: Callable[[Any], Iterator[Layer]]) -> list[Layer]:
    try:
        layers = list(describe(autoencoder))
        _require_complete(getattr(autoencoder, part), layers)
    except (_UnknownError, AttributeError, TypeError):
        _refuse(autoencoder)
    return layers


def _refuse(autoencoder: nn.Module) -> NoReturn:
    raise UserError(
        f"{type(autoencoder).__name__} does not support seamless processing. Supported are VQ-f4 and the AutoencoderKL "
        "of Stable Diffusion 1.5, SDXL, SD3 and Flux: use stock tiling instead."
    )


def _require_complete(network: nn.Module, layers: list[Layer]) -> None:
    """Check that every parameter is in a layer, and that no module has an option that layers do not support."""
    used = {id(parameter) for layer in layers for module in _modules(layer) for parameter in module.parameters()}
    _require(all(id(parameter) in used for parameter in network.parameters()))
    for module in network.modules():
        _require(all(getattr(module, name, value) == value for name, value in EXPECTED.items()))
        _require(all(isinstance(getattr(module, name, nn.SiLU()), nn.SiLU) for name in ACTIVATIONS))


def _modules(layer: Layer) -> Iterator[nn.Module]:
    for field in fields(layer):
        value = getattr(layer, field.name)
        if isinstance(value, nn.Module):
            yield value


def _require(known: bool) -> None:
    if not known:
        raise _UnknownError


def _whole_encoder(autoencoder: Any) -> Iterator[Layer]:
    yield from _encoder(autoencoder.encoder)
    if getattr(autoencoder, "quant_conv", None) is not None:
        yield Convolution(_pointwise(autoencoder.quant_conv))
    _require(getattr(autoencoder, "bn", None) is None)  # Flux.2 normalises 2x2 patches of its latent


def _whole_decoder(autoencoder: Any) -> Iterator[Layer]:
    _require(getattr(autoencoder, "bn", None) is None)
    quantizer = getattr(autoencoder, "quantize", None)
    if quantizer is not None:
        _require(isinstance(quantizer, Quantizer))
        yield Quantization(quantizer, quantizer.embedding.num_embeddings)
    if getattr(autoencoder, "post_quant_conv", None) is not None:
        yield Convolution(_pointwise(autoencoder.post_quant_conv))
    yield from _decoder(autoencoder.decoder)


def _encoder(network: Any) -> Iterator[Layer]:
    yield Convolution(_conv3x3(network.conv_in))
    for level in network.down_blocks if hasattr(network, "down_blocks") else network.down:
        yield from _level(level)
    yield from _middle_and_out(network, ())


def _decoder(network: Any) -> Iterator[Layer]:
    yield Convolution(_conv3x3(network.conv_in))
    yield from _middle_and_out(network, network.up_blocks if hasattr(network, "up_blocks") else reversed(network.up))


def _middle_and_out(network: Any, levels: Any) -> Iterator[Layer]:
    if hasattr(network, "mid_block"):
        yield from _alternating(network.mid_block.resnets, [None, *network.mid_block.attentions])
    else:
        yield _residual_block(network.mid.block_1)
        yield _attention(network.mid.attn_1)
        yield _residual_block(network.mid.block_2)
    for level in levels:
        yield from _level(level)
    norm = network.conv_norm_out if hasattr(network, "conv_norm_out") else network.norm_out
    yield Convolution(_conv3x3(network.conv_out), _group_norm(norm))


def _alternating(blocks: Any, attentions_before: Any) -> Iterator[Layer]:
    """Residual blocks, each preceded by the attention at its index, if any."""
    for block, attention in zip(blocks, attentions_before, strict=True):
        if attention is not None:
            yield _attention(attention)
        yield _residual_block(block)


def _level(level: Any) -> Iterator[Layer]:
    """The blocks of one resolution, each followed by its attention if any, then the resampling if any."""
    blocks = level.resnets if hasattr(level, "resnets") else level.block
    attentions = list(getattr(level, "attentions", getattr(level, "attn", ()))) or [None] * len(blocks)
    for block, attention in zip(blocks, attentions, strict=True):
        yield _residual_block(block)
        if attention is not None:
            yield _attention(attention)
    for name, kind in (("downsample", Downsample), ("upsample", Upsample)):
        one = getattr(level, name, None)
        changes = getattr(level, f"{name}rs", None) or ([] if one is None else [one])
        for change in changes:
            yield kind(_conv3x3(change.conv, stride=2, padding=0) if kind is Downsample else _conv3x3(change.conv))


def _residual_block(block: Any) -> ResidualBlock:
    shortcut = getattr(block, "nin_shortcut", getattr(block, "conv_shortcut", None))
    shortcut = None if shortcut is None or isinstance(shortcut, nn.Identity) else _pointwise(shortcut)
    norms, convs = map(_group_norm, (block.norm1, block.norm2)), map(_conv3x3, (block.conv1, block.conv2))
    (norm1, norm2), (conv1, conv2) = norms, convs
    return ResidualBlock(norm1, conv1, norm2, conv2, shortcut)


def _attention(module: Any) -> Attention:
    if hasattr(module, "to_q"):
        norm, heads = module.group_norm, module.heads
        projections = (module.to_q, module.to_k, module.to_v, module.to_out[0])
    else:
        norm, heads = module.norm, 1
        projections = (module.q, module.k, module.v, module.proj_out)
    return Attention(_group_norm(norm), *map(_pointwise, projections), heads=heads)


def _group_norm(module: nn.Module) -> nn.Module:
    _require(isinstance(module, nn.GroupNorm))
    return module


def _conv3x3(module: nn.Module, stride: int = 1, padding: int = 1) -> nn.Module:
    return _convolution(module, 3, stride, padding)


def _pointwise(module: nn.Module) -> nn.Module:
    return module if isinstance(unwrapped(module), nn.Linear) else _convolution(module, 1, 1, 0)


def _convolution(module: nn.Module, kernel: int, stride: int, padding: int) -> nn.Module:
    conv = unwrapped(module)
    _require(isinstance(conv, nn.Conv2d) and conv.padding_mode == "zeros")
    shape = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    _require(shape == ((kernel, kernel), (stride, stride), (padding, padding), (1, 1)))
    return module
