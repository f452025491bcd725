"""Describe an autoencoder as a flat list of layers, found in its modules by name (`kinds`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, NoReturn

from torch import nn

from ...errors import UserError
from .kinds import hunyuan_image, hunyuan_video, hunyuan_video_15, kl, ltx, tiny, wan
from .kinds.modules import UnknownError, require
from .layers import Layer, Rearrangement
from .refusals import refusal

SUPPORTED = (
    "Stable Diffusion 1.5, SDXL, SD3, Flux, Flux.2, Qwen-Image, Wan 2.1, Wan 2.2, Hunyuan Image 2.1, HunyuanVideo 1.0 "
    "and 1.5, LTX-Video 0.9.0, LTX-2 and TAESD"
)
KINDS = (tiny, wan, ltx, hunyuan_video, hunyuan_video_15, hunyuan_image, kl)  # the first that fits counts
# With any other value of these attributes, a module does not compute what the layers describe.
EXPECTED = {
    "tanh_out": (False,),
    "output_scale_factor": (1,),
    "rescale_output_factor": (1,),
    "residual_connection": (True,),
    "scale_qk": (True,),
    "scale_factor": (2, (2, 2), (1, 2, 2)),
    "spatial_norm": (None,),
    "norm_q": (None,),
    "norm_k": (None,),
}
# They only run if there is a mask (AsymmetricAutoencoderKL) or a timestep (HunyuanVideo 1.5 in ComfyUI).
UNUSED = ("condition_encoder", "temb_proj")
ACTIVATIONS = ("swish", "nonlinearity", "conv_act")


def encoder_layers(autoencoder: nn.Module) -> list[Layer]:
    """From the picture to the posterior's moments, or to the latent if the autoencoder has no posterior.

    Raises UserError for a network that these layers cannot describe.
    """
    return _checked(autoencoder, "encoder", _kind(autoencoder).encoder)


def decoder_layers(autoencoder: nn.Module) -> list[Layer]:
    """From the latent to the picture. Raises UserError for a network that these layers cannot describe."""
    return _checked(autoencoder, "decoder", _kind(autoencoder).decoder)


def is_tiny(autoencoder: nn.Module) -> bool:
    """Whether its networks have the names of a tiny autoencoder's, in ComfyUI or diffusers."""
    return tiny.fits(autoencoder)


def _kind(autoencoder: nn.Module) -> Any:
    return next(kind for kind in KINDS if kind.fits(autoencoder))


def _checked(autoencoder: nn.Module, part: str, describe: Callable[[Any], Iterator[Layer]]) -> list[Layer]:
    try:
        layers = list(describe(autoencoder))
        _require_complete(getattr(autoencoder, f"taesd_{part}", None) or getattr(autoencoder, part), layers)
    except (UnknownError, AttributeError, TypeError, ValueError):
        _refuse(autoencoder)
    return layers


def _refuse(autoencoder: nn.Module) -> NoReturn:
    raise UserError(
        f"{refusal(autoencoder)}: use stock tiling for it (supported are VQ-f4 and the VAEs of {SUPPORTED})."
    )


def _require_complete(network: Any, layers: list[Layer]) -> None:
    """Check that every parameter is in a layer, and that no module has an option that layers do not support."""
    modules = [module for layer in layers for module in _modules(layer)]
    for module in network.modules():
        modules += [module._modules[name] for name in UNUSED if name in module._modules]
    used = {id(parameter) for module in modules for parameter in module.parameters()}
    require(all(id(parameter) in used for parameter in network.parameters()))
    for module in network.modules():
        held = vars(module) | module._modules
        for name in EXPECTED.keys() & held.keys():
            require(held[name] in EXPECTED[name])
        require(all(isinstance(held[name], nn.SiLU) for name in ACTIVATIONS if name in held))


def _modules(layer: Layer) -> Iterator[nn.Module]:
    for field in fields(layer):
        value = getattr(layer, field.name)
        value = value.function if isinstance(value, Rearrangement) else value
        if isinstance(value, nn.Module):
            yield value
