"""Tiny autoencoders (TAESD): sequences of convolutions and blocks, in ComfyUI and diffusers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import Convolution, Downsample, Layer, Local, Upsample, channels, unwrapped
from .modules import conv3x3, pointwise, require


def fits(autoencoder: Any) -> bool:
    """Whether its networks have the names of a tiny autoencoder's."""
    return hasattr(autoencoder, "taesd_decoder") or hasattr(getattr(autoencoder, "decoder", None), "layers")


def encoder(autoencoder: Any) -> Iterator[Layer]:
    """From [-1, 1] to its own [0, 1] first."""
    layers = list(_sequence(_modules(autoencoder, "encoder")))
    yield _per_pixel(Affine(0.5, 0.5), layers[0].conv, 0)
    yield from layers
    if hasattr(autoencoder, "vae_scale"):
        scale, shift = float(autoencoder.vae_scale), float(autoencoder.vae_shift)
        yield _per_pixel(Affine(1 / scale, shift), layers[-1].conv, 1)


def decoder(autoencoder: Any) -> Iterator[Layer]:
    modules = _modules(autoencoder, "decoder")
    if hasattr(autoencoder, "vae_scale"):  # ComfyUI's, whose first module is the clamp
        clamp, *modules = modules
        probe = torch.tensor([-9.0, 0.5, 4.0])
        require(not list(clamp.parameters()) and torch.allclose(clamp(probe), soft_clamp(probe)))
        scale, shift = float(autoencoder.vae_scale), float(autoencoder.vae_shift)
        yield _per_pixel(Affine(scale, -shift * scale), modules[0], 0)
    yield _per_pixel(soft_clamp, modules[0], 0)
    yield from _sequence(modules)
    yield _per_pixel(Affine(2, -1), modules[-1], 1)


@dataclass(frozen=True)
class Affine:
    scale: float
    shift: float

    def __call__(self, band: Tensor) -> Tensor:
        return band * self.scale + self.shift


def soft_clamp(band: Tensor) -> Tensor:
    """Into (-3, 3), as the decoders begin."""
    return torch.tanh(band / 3) * 3


def _modules(autoencoder: Any, part: str) -> list[Any]:
    network = getattr(autoencoder, f"taesd_{part}", None) or getattr(autoencoder, part)
    return list(getattr(network, "layers", network))


def _sequence(modules: list[Any]) -> Iterator[Any]:
    require(not isinstance(modules[-1], nn.Upsample))
    for before, module in zip([None, *modules], modules, strict=False):
        if isinstance(before, nn.Upsample):
            require(before.mode == "nearest")
            yield Upsample(conv3x3(module))
        elif isinstance(module, nn.ReLU) and before is not None:
            yield _per_pixel(_relu(module), before, 1)
        elif hasattr(module, "fuse"):
            yield _block(module)
        elif not isinstance(module, nn.Upsample):
            centred = unwrapped(module).stride == (2, 2)
            yield Downsample(conv3x3(module, stride=2), True) if centred else Convolution(conv3x3(module))


def _block(block: Any) -> Local:
    """relu(three convolutions of x + shortcut(x)): its result at a pixel depends on three rows above and below."""
    require(len(block.conv) == 5 and getattr(block, "pool", None) is None)
    first, _, last = map(conv3x3, block.conv[::2])
    for activation in (block.conv[1], block.conv[3], block.fuse):
        _relu(activation)
    if not isinstance(block.skip, nn.Identity):
        pointwise(block.skip)
    return Local(block, 3, (channels(first)[0], channels(last)[1]))


def _per_pixel(function: Callable[[Tensor], Tensor], conv: nn.Module, side: int) -> Local:
    """side: 0 for a function before this convolution, 1 for one after it."""
    width = channels(conv)[side]
    return Local(function, 0, (width, width))


def _relu(module: nn.Module) -> nn.Module:
    require(isinstance(module, nn.ReLU) and not module.inplace)
    return module
