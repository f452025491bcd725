"""One-step LoRAs on ComfyUI's own MODEL and VAE: what any method's LoRA needs, whatever the base.

What differs between bases is in `host_sd3` and `host_unet`, which have the same functions.
"""

from __future__ import annotations

import copy
from typing import Any

import comfy.lora
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE

from ..sr_models.checkpoints import low_rank
from ..sr_models.checkpoints.lora_fit import require_fit
from ..sr_models.checkpoints.low_rank import Adapter
from ..sr_models.checkpoints.vae_names import original_vae_name
from ..sr_models.checkpoints.weights_file import shortened
from ..sr_models.core.model import Fixed, SRModel
from ..sr_models.errors import UserError
from ..sr_models.families.family import OneStepLora, OpenedModel, on_base, start_level
from . import host_sd3, host_unet
from .host_sd import (
    CARRIED,
    LATENT_FORMAT,
    Carried,
    Conditioning,
    GuidedDenoiser,
    VAECodec,
    carried_by,
    require_prompt,
    require_vae,
)

TARGET = "the connected MODEL"


def _host_of(model: ModelPatcher) -> Any:
    """The module that knows the MODEL's base; None for anything but a Stable Diffusion."""
    return next((host for host in (host_sd3, host_unet) if host.holds(model)), None)


def apply_lora(model: ModelPatcher, lora: OneStepLora, strength: float) -> tuple[ModelPatcher, tuple[str, ...]]:
    """A MODEL with the LoRA and with latents as one-step LoRAs have them, and warnings. The given one stays as it was.

    Raises UserError where the MODEL is not what the LoRA was made for, or the LoRA does not fit it.
    """
    host = _host_of(model)
    if host is None:
        title = type(model.model.model_config).__name__
        raise UserError(f"{lora.sentence}, but {TARGET} is {title}: use {lora.base}.")
    warnings, patched = lora.require_base(host.base_of(model), TARGET), model.clone()
    _replace(patched, lora, host.parameter_names(model))
    for adapter in lora.network:
        targets = host.targets(model, adapter.update)
        require_fit(
            adapter.update, {m: shape for m, (_, shape) in targets.items()}, lora.sentence, TARGET, str(lora.base)
        )
        _patch(patched, adapter, {module: key for module, (key, _) in targets.items()}, strength)
    if latent_format := host.latent_format():
        patched.add_object_patch(LATENT_FORMAT, latent_format)
    patched.set_attachments(CARRIED, Carried(lora.family, lora.base, lora.recipe))
    return patched, warnings


def apply_vae_lora(vae: VAE, lora: OneStepLora, strength: float) -> VAE:
    """A VAE with the LoRA on its encoder. The given VAE stays as it was. Raises UserError where it does not fit."""
    patched, state = copy.copy(vae), vae.first_stage_model.state_dict()
    patched.patcher = vae.patcher.clone()
    for adapter in lora.vae:
        keys = {module: f"{original_vae_name(module)}.weight" for module in adapter.update}
        shapes = {module: tuple(state[key].shape) for module, key in keys.items() if key in state}
        require_fit(adapter.update, shapes, lora.sentence, "the connected VAE", str(lora.base))
        _patch(patched.patcher, adapter, keys, strength)
    return patched


def _patch(patcher: ModelPatcher, adapter: Adapter, keys: dict[str, Any], strength: float) -> None:
    """Let the host apply a LoRA; `keys` are the host's names for the modules' weights."""
    update = adapter.update
    patches = comfy.lora.load_lora(low_rank.to_tensors(update), {module: keys[module] for module in update})
    patched = patcher.add_patches(patches, strength * adapter.strength)
    left_out = [module for module in update if keys[module] not in patched]
    if left_out:
        raise UserError(f"ComfyUI did not take the LoRA's {shortened(left_out)}: update ComfyUI.")


def _replace(patcher: ModelPatcher, lora: OneStepLora, names: dict[str, str]) -> None:
    """Let the host put weights in the place of the network's own; `names` are its names for diffusers' parameters."""
    shapes = {name: tuple(weight.shape) for name, weight in patcher.model.named_parameters()}
    for name, tensor in lora.replaced.items():
        if shapes.get(names.get(name, "")) != tensor.shape:
            raise UserError(f"{lora.sentence}, but {TARGET} has no {name} of shape {tuple(tensor.shape)}: use another.")
        patcher.add_patches({names[name]: ("set", (tensor,))})


def open_model(model: ModelPatcher, vae: VAE, conditioning: Conditioning, recipe: str) -> OpenedModel:
    """A MODEL and a VAE with their LoRA, and a prompt, as an SR model. A recipe that another method has means the
    LoRA's own.

    Raises UserError for a MODEL without a LoRA, and for another model's VAE or CONDITIONING.
    """
    carried = carried_by(model)
    if carried is None:
        raise UserError("The connected MODEL carries no one-step LoRA: connect it through Apply One-Step SR LoRA.")
    host, latent_format = _host_of(model), model.get_model_object(LATENT_FORMAT)
    require_vae(vae, latent_format.latent_channels, str(carried.base))
    require_prompt(conditioning, host.prompt_width(model), str(carried.base))
    chosen = carried.family.recipe(recipe if recipe in carried.family.recipes else carried.recipe)
    process = host.process_of(model)
    denoiser = GuidedDenoiser(model, process.level, start_level(chosen, process))
    codec = VAECodec(vae, latent_format)
    return OpenedModel(carried.family, SRModel(on_base(chosen, process), denoiser, codec, Fixed(conditioning)))
