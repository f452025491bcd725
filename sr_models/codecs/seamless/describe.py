"""Describe an autoencoder as a flat list of layers, found in its modules by name.

Three naming schemes exist: latent diffusion's (ComfyUI's autoencoders, `networks/vq_autoencoder.py`), Wan's (ComfyUI's
Wan and Qwen-Image) and diffusers'. Tiny autoencoders (TAESD) are sequences of convolutions and blocks. Nothing is
imported from a host, and a wrapped module (PEFT's `base_layer`) is treated as the module that it wraps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ...errors import UserError
from ...networks.vq_autoencoder import Quantizer
from .layers import (
    Affine,
    Attention,
    Convolution,
    Downsample,
    FramesDown,
    FramesUp,
    Layer,
    Local,
    Packing,
    Quantization,
    ResidualBlock,
    Third,
    Unpacking,
    Upsample,
    channels,
    soft_clamp,
    unwrapped,
)
from .refusals import refusal

SUPPORTED = "Stable Diffusion 1.5, SDXL, SD3, Flux, Flux.2, Qwen-Image, Wan 2.1 and TAESD"
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
# The layers with which an encoder or decoder was complete. The check takes ten times as long as the description.
COMPLETE: WeakKeyDictionary[nn.Module, list[Layer]] = WeakKeyDictionary()


def encoder_layers(autoencoder: nn.Module) -> list[Layer]:
    """From the picture to the posterior's moments, or to the latent if the autoencoder has no posterior.

    Raises UserError for a network that these layers cannot describe.
    """
    return _checked(autoencoder, "encoder", _whole_encoder)


def decoder_layers(autoencoder: nn.Module) -> list[Layer]:
    """From the latent to the picture. Raises UserError for a network that these layers cannot describe."""
    return _checked(autoencoder, "decoder", _whole_decoder)


def is_tiny(autoencoder: nn.Module) -> bool:
    """Whether its networks have the names of a tiny autoencoder's, in ComfyUI or diffusers."""
    return hasattr(autoencoder, "taesd_decoder") or hasattr(getattr(autoencoder, "decoder", None), "layers")


class _UnknownError(Exception):
    """A module that the layers above cannot describe."""


def _checked(autoencoder: nn.Module, part: str, describe: Callable[[Any], Iterator[Layer]]) -> list[Layer]:
    try:
        layers = list(describe(autoencoder))
        _require_complete(getattr(autoencoder, _name_of(autoencoder, part)), layers)
    except (_UnknownError, AttributeError, TypeError):
        _refuse(autoencoder)
    return layers


def _refuse(autoencoder: nn.Module) -> NoReturn:
    raise UserError(
        f"{refusal(autoencoder)}: use stock tiling for it (supported are VQ-f4 and the VAEs of {SUPPORTED})."
    )


def _require_complete(network: nn.Module, layers: list[Layer]) -> None:
    """Check that every parameter is in a layer, and that no module has an option that layers do not support.

    The layers hold modules, not weights, so the check is repeated only after a module was replaced.
    """
    if COMPLETE.get(network) == layers:
        return
    used = {id(parameter) for layer in layers for module in _modules(layer) for parameter in module.parameters()}
    _require(all(id(parameter) in used for parameter in network.parameters()))
    silu = nn.SiLU()
    for module in network.modules():
        # nn.Upsample holds a factor per side.
        _require(all(getattr(module, name, value) in (value, (value, value)) for name, value in EXPECTED.items()))
        _require(all(isinstance(getattr(module, name, silu), nn.SiLU) for name in ACTIVATIONS))
    COMPLETE[network] = layers


def _modules(layer: Layer) -> Iterator[nn.Module]:
    for field in fields(layer):
        value = getattr(layer, field.name)
        if isinstance(value, nn.Module):
            yield value


def _require(known: bool) -> None:
    if not known:
        raise _UnknownError


def _name_of(autoencoder: nn.Module, part: str) -> str:
    return f"taesd_{part}" if hasattr(autoencoder, f"taesd_{part}") else part


def _whole_encoder(autoencoder: Any) -> Iterator[Layer]:
    if is_tiny(autoencoder):
        yield from _tiny_encoder(autoencoder)
        return
    yield from _encoder(autoencoder.encoder)
    quant_conv = getattr(autoencoder, "quant_conv", getattr(autoencoder, "conv1", None))
    if quant_conv is not None:
        yield Convolution(_pointwise(quant_conv))
    norm = _patch_norm(autoencoder)
    if norm is not None:
        yield Packing(norm)


def _whole_decoder(autoencoder: Any) -> Iterator[Layer]:
    if is_tiny(autoencoder):
        yield from _tiny_decoder(autoencoder)
        return
    norm = _patch_norm(autoencoder)
    if norm is not None:
        yield Unpacking(norm)
    quantizer = getattr(autoencoder, "quantize", None)
    if quantizer is not None:
        _require(isinstance(quantizer, Quantizer))
        yield Quantization(quantizer, quantizer.embedding.num_embeddings)
    post_quant_conv = getattr(autoencoder, "post_quant_conv", getattr(autoencoder, "conv2", None))
    if post_quant_conv is not None:
        yield Convolution(_pointwise(post_quant_conv))
    yield from _decoder(autoencoder.decoder)


def _patch_norm(autoencoder: Any) -> nn.BatchNorm2d | None:
    """Flux.2's norm of 2x2 patches of the latent, where the autoencoder itself applies it: in diffusers, a pipeline
    does."""
    norm = getattr(autoencoder, "bn", None)
    if norm is None or getattr(getattr(autoencoder, "config", None), "batch_norm_eps", None) is not None:
        return None
    _require(list(autoencoder.ps) == [2, 2] and isinstance(norm, nn.BatchNorm2d) and not norm.affine)
    return norm


def _encoder(network: Any) -> Iterator[Layer]:
    if hasattr(network, "head"):
        yield from _sequences(network)
        return
    yield Convolution(_conv3x3(network.conv_in))
    for level in network.down_blocks if hasattr(network, "down_blocks") else network.down:
        yield from _level(level)
    yield from _middle_and_out(network, ())


def _decoder(network: Any) -> Iterator[Layer]:
    if hasattr(network, "head"):
        yield from _sequences(network)
        return
    yield Convolution(_conv3x3(network.conv_in))
    yield from _middle_and_out(network, network.up_blocks if hasattr(network, "up_blocks") else reversed(network.up))


def _sequences(network: Any) -> Iterator[Layer]:
    """The encoder or decoder of Wan and Qwen-Image in its authors' naming."""
    yield Convolution(_conv3x3(network.conv1))
    for block in (*getattr(network, "downsamples", ()), *network.middle, *getattr(network, "upsamples", ())):
        yield from _level(block)
    norm, activation, conv = network.head
    _require(isinstance(activation, nn.SiLU))
    yield Convolution(_conv3x3(conv), _norm(norm))


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
    yield Convolution(_conv3x3(network.conv_out), _norm(norm))


def _alternating(blocks: Any, attentions_before: Any) -> Iterator[Layer]:
    """Residual blocks, each preceded by the attention at its index, if any."""
    for block, attention in zip(blocks, attentions_before, strict=True):
        if attention is not None:
            yield _attention(attention)
        yield _residual_block(block)


def _level(level: Any) -> Iterator[Layer]:
    """The blocks of one resolution, each followed by its attention if any, then the resampling if any. Causal networks
    hold them in one sequence."""
    if hasattr(level, "resample"):
        yield from _resampling(level)
        return
    if hasattr(level, "to_qkv"):
        yield _attention(level)
        return
    if hasattr(level, "residual") or hasattr(level, "conv1"):
        yield _residual_block(level)
        return
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
            if hasattr(change, "resample"):
                yield from _resampling(change)
                continue
            yield kind(_conv3x3(change.conv, stride=2, padding=0) if kind is Downsample else _conv3x3(change.conv))


def _resampling(block: Any) -> Iterator[Layer]:
    """A causal network's: in space, and in time before it (up) or after it (down)."""
    _require(block.mode in ("upsample2d", "upsample3d", "downsample2d", "downsample3d"))
    first, conv = block.resample
    if block.mode.startswith("up"):
        _require(isinstance(first, nn.Upsample) and first.mode == "nearest-exact")
        if block.mode == "upsample3d":
            yield FramesUp(_convolution(block.time_conv, (3, 1, 1), 1, 0))
        yield Upsample(_conv3x3(conv))
    else:
        _require(isinstance(first, nn.ZeroPad2d) and first.padding == (0, 1, 0, 1))
        yield Downsample(_conv3x3(conv, stride=2, padding=0))
        if block.mode == "downsample3d":
            yield FramesDown(_convolution(block.time_conv, (3, 1, 1), (2, 1, 1), 0))


def _residual_block(block: Any) -> ResidualBlock:
    names = ("nin_shortcut", "conv_shortcut", "shortcut")
    shortcut = next((getattr(block, name) for name in names if hasattr(block, name)), None)
    shortcut = None if shortcut is None or isinstance(shortcut, nn.Identity) else _pointwise(shortcut)
    if hasattr(block, "residual"):
        norm1, first, conv1, norm2, second, _, conv2 = block.residual
        _require(isinstance(first, nn.SiLU) and isinstance(second, nn.SiLU))
        return ResidualBlock(_norm(norm1), _conv3x3(conv1), _norm(norm2), _conv3x3(conv2), shortcut)
    norms, convs = map(_norm, (block.norm1, block.norm2)), map(_conv3x3, (block.conv1, block.conv2))
    (norm1, norm2), (conv1, conv2) = norms, convs
    return ResidualBlock(norm1, conv1, norm2, conv2, shortcut)


def _attention(module: Any) -> Attention:
    if hasattr(module, "to_qkv"):
        query, key, value = (Third(_pointwise(module.to_qkv), part) for part in range(3))
        return Attention(_norm(module.norm), query, key, value, _pointwise(module.proj), heads=1)
    if hasattr(module, "to_q"):
        norm, heads = module.group_norm, module.heads
        projections = (module.to_q, module.to_k, module.to_v, module.to_out[0])
    else:
        norm, heads = module.norm, 1
        projections = (module.q, module.k, module.v, module.proj_out)
    return Attention(_norm(norm), *map(_pointwise, projections), heads=heads)


def _tiny_encoder(autoencoder: Any) -> Iterator[Layer]:
    """From [-1, 1] to its own [0, 1] first."""
    layers = list(_tiny_sequence(_tiny_modules(autoencoder, "encoder")))
    yield _per_pixel(Affine(0.5, 0.5), layers[0].conv, 0)
    yield from layers
    if hasattr(autoencoder, "vae_scale"):
        scale, shift = float(autoencoder.vae_scale), float(autoencoder.vae_shift)
        yield _per_pixel(Affine(1 / scale, shift), layers[-1].conv, 1)


def _tiny_decoder(autoencoder: Any) -> Iterator[Layer]:
    modules = _tiny_modules(autoencoder, "decoder")
    if hasattr(autoencoder, "vae_scale"):  # ComfyUI's, whose first module is the clamp
        clamp, *modules = modules
        probe = torch.tensor([-9.0, 0.5, 4.0])
        _require(not list(clamp.parameters()) and torch.allclose(clamp(probe), soft_clamp(probe)))
        scale, shift = float(autoencoder.vae_scale), float(autoencoder.vae_shift)
        yield _per_pixel(Affine(scale, -shift * scale), modules[0], 0)
    yield _per_pixel(soft_clamp, modules[0], 0)
    yield from _tiny_sequence(modules)
    yield _per_pixel(Affine(2, -1), modules[-1], 1)


def _tiny_modules(autoencoder: Any, part: str) -> list[Any]:
    network = getattr(autoencoder, _name_of(autoencoder, part))
    return list(getattr(network, "layers", network))


def _tiny_sequence(modules: list[Any]) -> Iterator[Any]:
    _require(not isinstance(modules[-1], nn.Upsample))
    for before, module in zip([None, *modules], modules, strict=False):
        if isinstance(before, nn.Upsample):
            _require(before.mode == "nearest")
            yield Upsample(_conv3x3(module))
        elif isinstance(module, nn.ReLU) and before is not None:
            yield _per_pixel(_relu(module), before, 1)
        elif hasattr(module, "fuse"):
            yield _tiny_block(module)
        elif not isinstance(module, nn.Upsample):
            centred = unwrapped(module).stride == (2, 2)
            yield Downsample(_conv3x3(module, stride=2), True) if centred else Convolution(_conv3x3(module))


def _tiny_block(block: Any) -> Local:
    """relu(three convolutions of x + shortcut(x)): its result at a pixel depends on three rows above and below."""
    _require(len(block.conv) == 5 and getattr(block, "pool", None) is None)
    first, _, last = map(_conv3x3, block.conv[::2])
    for activation in (block.conv[1], block.conv[3], block.fuse):
        _relu(activation)
    if not isinstance(block.skip, nn.Identity):
        _pointwise(block.skip)
    return Local(block, 3, (channels(first)[0], channels(last)[1]))


def _per_pixel(function: Callable[[Tensor], Tensor], conv: nn.Module, side: int) -> Local:
    """side: 0 for a function before this convolution, 1 for one after it."""
    width = channels(conv)[side]
    return Local(function, 0, (width, width))


def _relu(module: nn.Module) -> nn.Module:
    _require(isinstance(module, nn.ReLU) and not module.inplace)
    return module


def _norm(module: Any) -> nn.Module:
    """A GroupNorm, or a norm by the root mean square of each pixel's channels."""
    if not isinstance(module, nn.GroupNorm):
        _require(module.channel_first and module.gamma.shape[1:].numel() == 1)
        _require(module.scale == module.gamma.shape[0] ** 0.5)
    return module


def _conv3x3(module: nn.Module, stride: int = 1, padding: int = 1) -> nn.Module:
    return _convolution(module, 3, stride, padding)


def _pointwise(module: nn.Module) -> nn.Module:
    return module if isinstance(unwrapped(module), nn.Linear) else _convolution(module, 1, 1, 0)


def _convolution(
    module: nn.Module, kernel: int | tuple[int, ...], stride: int | tuple[int, ...], padding: int
) -> nn.Module:
    conv: Any = unwrapped(module)
    _require(isinstance(conv, nn.Conv2d | nn.Conv3d) and conv.padding_mode == "zeros")
    sides = len(conv.kernel_size)
    kernel, stride = (side if isinstance(side, tuple) else (side,) * sides for side in (kernel, stride))
    _require((conv.kernel_size, conv.stride, conv.dilation) == (kernel, stride, (1,) * sides))
    if isinstance(conv, nn.Conv2d):
        _require(conv.padding == (padding, padding))
    else:
        _require_causal(conv, padding)
    return module


def _require_causal(conv: Any, padding: int) -> None:
    """Zeros around each frame, and two frames of them before the first unless the stride is larger than 1.

    A causal convolution pads by itself, in its own attribute: all sides (last, next to last, ...) or those of time.
    """
    before = 0 if conv.kernel_size[0] == 1 or conv.stride[0] > 1 else 2
    if isinstance(conv._padding, int):
        _require((conv._padding, conv.padding) == (before, (0, padding, padding)))
    else:
        _require((tuple(conv._padding), conv.padding) == ((*(padding,) * 4, before, 0), (0, 0, 0)))
