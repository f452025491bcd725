"""One-step LoRAs on ComfyUI's MODEL of Stable Diffusion 1.5, 2.1 and SDXL."""

from __future__ import annotations

import comfy.utils
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE

from ..sr_models.checkpoints.lora_fit import require_fit
from ..sr_models.core.model import SRModel
from ..sr_models.errors import UserError
from ..sr_models.families.one_step_lora import TSD_FAMILY, TSDWeights, on_unet
from .host_sd import (
    LATENT_FORMAT,
    Conditioning,
    GuidedDenoiser,
    VAECodec,
    patch,
    process_of,
    require_prompt,
    require_vae,
)

BASE = "onestep_sr_base"  # the attachment with the name of the base whose LoRA a MODEL carries


def apply_lora(model: ModelPatcher, weights: TSDWeights, strength: float) -> tuple[ModelPatcher, str]:
    """A MODEL with the LoRA, and no warning. The given MODEL stays as it was.

    Raises UserError where the MODEL has no U-Net, or the LoRA does not fit it.
    """
    title = type(model.model.model_config).__name__
    if not isinstance(model.model.diffusion_model, UNetModel):
        raise UserError(
            f"{weights.name} is a LoRA for {weights.base}, but the connected MODEL is {title}: connect a checkpoint of "
            f"{weights.base}."
        )
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    keys = {module.removesuffix(".weight"): f"diffusion_model.{name}" for module, name in names.items()}
    state = model.model.state_dict()
    shapes = {module: tuple(state[key].shape) for module, key in keys.items() if key in state}
    require_fit(weights.unet, shapes, weights.name, f"the connected {title}", weights.base)
    patched = model.clone()
    patch(patched, weights.unet, keys, strength)
    patched.set_attachments(BASE, weights.base)
    return patched, ""


def carries_lora(model: ModelPatcher) -> bool:
    return model.get_attachment(BASE) is not None


def open_model(model: ModelPatcher, vae: VAE, conditioning: Conditioning, recipe: str) -> SRModel:
    """For a MODEL that `carries_lora`. Raises UserError for another model's VAE or CONDITIONING."""
    base, latent_format = model.get_attachment(BASE), model.get_model_object(LATENT_FORMAT)
    require_vae(vae, latent_format.latent_channels, base)
    require_prompt(conditioning, model.model.model_config.unet_config["context_dim"], base)
    process = process_of(model)
    sigma = float(model.get_model_object("model_sampling").sigma_max)
    denoiser = GuidedDenoiser(model, conditioning, process.level, sigma)
    return SRModel(on_unet(TSD_FAMILY[recipe], process), denoiser, VAECodec(vae, latent_format))
