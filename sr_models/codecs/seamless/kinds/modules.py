"""The modules that autoencoders share, checked for what the layers can compute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Attention, Convolution, Layer, Local, ResidualBlock, Third, unwrapped


class UnknownError(Exception):
    """A module that the layers cannot describe."""


def require(known: bool) -> None:
    if not known:
        raise UnknownError


def convolution_in(network: Any) -> Convolution:
    return Convolution(conv3x3(network.conv_in))


def convolution_out(network: Any) -> Convolution:
    norm_out = network.conv_norm_out if hasattr(network, "conv_norm_out") else network.norm_out
    return Convolution(conv3x3(network.conv_out), norm(norm_out))


def levels(network: Any, side: str) -> Any:
    """Those of an encoder ("down") or a decoder ("up"), in the order in which the network has them."""
    return getattr(network, f"{side}_blocks") if hasattr(network, f"{side}_blocks") else getattr(network, side)


def blocks_of(level: Any) -> Any:
    return level.resnets if hasattr(level, "resnets") else level.block


def changes(level: Any, name: str) -> list[Any]:
    """A level's changes of resolution: "downsample" or "upsample"."""
    one = getattr(level, name, None)
    return getattr(level, f"{name}rs", None) or ([] if one is None else [one])


def middle(network: Any) -> Iterator[Layer]:
    """Residual blocks with an attention between each two, which diffusers may leave out."""
    if hasattr(network, "mid"):
        yield residual_block(network.mid.block_1)
        yield attention(network.mid.attn_1)
        yield residual_block(network.mid.block_2)
        return
    before = [None, *network.mid_block.attentions]
    for block, attends in zip(network.mid_block.resnets, before, strict=True):
        if attends is not None:
            yield attention(attends)
        yield residual_block(block)


def residual_block(block: Any) -> ResidualBlock:
    names = ("nin_shortcut", "conv_shortcut", "shortcut")
    shortcut = next((getattr(block, name) for name in names if hasattr(block, name)), None)
    shortcut = None if shortcut is None or isinstance(shortcut, nn.Identity) else pointwise(shortcut)
    if hasattr(block, "residual"):
        norm1, first, conv1, norm2, second, _, conv2 = block.residual
        require(isinstance(first, nn.SiLU) and isinstance(second, nn.SiLU))
    else:
        norm1, conv1, norm2, conv2 = block.norm1, block.conv1, block.norm2, block.conv2
    return ResidualBlock(norm(norm1), conv3x3(conv1), norm(norm2), conv3x3(conv2), shortcut)


def attention(module: Any) -> Attention:
    if hasattr(module, "to_qkv"):
        query, key, value = (Third(pointwise(module.to_qkv), part) for part in range(3))
        return Attention(norm(module.norm), query, key, value, pointwise(module.proj), heads=1)
    if hasattr(module, "to_q"):
        before, heads = getattr(module, "group_norm", None) or module.norm, getattr(module, "heads", 1)
        out = module.to_out[0] if hasattr(module, "to_out") else getattr(module, "proj", None) or module.proj_out
        projections = (module.to_q, module.to_k, module.to_v, out)
    else:
        before, heads = module.norm, 1
        projections = (module.q, module.k, module.v, module.proj_out)
    return Attention(norm(before), *map(pointwise, projections), heads=heads)


def patched(channels: int, size: int) -> Local:
    """A picture in square patches, each column by column, of which this many channels are made."""

    def patches(picture: Tensor) -> Tensor:
        return F.pixel_unshuffle(picture.transpose(2, 3), size).transpose(2, 3)

    return Local(patches, 0, (channels // size**2, channels), down=size)


def unpatched(channels: int, size: int) -> Local:
    """The inverse of `patched`."""

    def pixels(patches: Tensor) -> Tensor:
        return F.pixel_shuffle(patches.transpose(2, 3), size).transpose(2, 3)

    return Local(pixels, 0, (channels, channels // size**2), up=size)


def norm(module: Any) -> nn.Module:
    """A GroupNorm, or a norm by the root mean square of each pixel's channels."""
    if not isinstance(module, nn.GroupNorm):
        require(getattr(module, "channel_first", True) and module.gamma.shape[1:].numel() == 1)
        require(module.scale == module.gamma.shape[0] ** 0.5)
    return module


def conv3x3(module: nn.Module, stride: int = 1, padding: int = 1) -> nn.Module:
    return convolution(module, 3, stride, padding)


def pointwise(module: nn.Module) -> nn.Module:
    return module if isinstance(unwrapped(module), nn.Linear) else convolution(module, 1, 1, 0)


def convolution(
    module: nn.Module, kernel: int | tuple[int, ...], stride: int | tuple[int, ...], padding: int
) -> nn.Module:
    conv: Any = unwrapped(module)
    require(isinstance(conv, nn.Conv2d | nn.Conv3d) and conv.padding_mode == "zeros")
    sides = len(conv.kernel_size)
    kernel, stride = (side if isinstance(side, tuple) else (side,) * sides for side in (kernel, stride))
    require((conv.kernel_size, conv.stride, conv.dilation) == (kernel, stride, (1,) * sides))
    if isinstance(conv, nn.Conv2d):
        require(conv.padding == (padding, padding))
    else:
        _require_causal(conv, padding)
    return module


def _require_causal(conv: Any, padding: int) -> None:
    """Zeros around each frame, and two frames of them before the first unless the stride is larger than 1.

    A causal convolution pads by itself, in its own attribute: all sides (last, next to last, ...) or those of time.
    """
    before = 0 if conv.kernel_size[0] == 1 or conv.stride[0] > 1 else 2
    if conv.kernel_size == (1, 1, 1) and not hasattr(conv, "_padding"):
        require(conv.padding == (0, 0, 0))
    elif isinstance(conv._padding, int):
        require((conv._padding, conv.padding) == (before, (0, padding, padding)))
    else:
        require((tuple(conv._padding), conv.padding) == ((*(padding,) * 4, before, 0), (0, 0, 0)))
