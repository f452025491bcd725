"""One-step LoRAs on Stable Diffusion 1.5, 2.1 and SDXL without a host: the base from a diffusers folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.model import SRModel
from ..errors import UserError
from ..families import one_step_lora
from ..families.one_step_lora import choose_recipe, on_unet
from .codec import LatentCodec
from .denoiser import PromptedDenoiser
from .merge import merge_update
from .offload import Placement
from .opened import StandaloneModel
from .packages import require_diffusers
from .unet_files import needs_float32, open_unet
from .unet_prompts import open_text_encoders


def load_unet(
    base: Path,
    lora: Path,
    *,
    prompt: str | None = None,
    recipe: str | None = None,
    dtype: torch.dtype = torch.float16,
    device: torch.device | None = None,
    offload: bool = False,
    budget: int | None = None,
) -> StandaloneModel:
    """A Stable Diffusion with a U-Net and a one-step LoRA for it as an SR model.

    Arguments as `sd3.load_sd3` has them; the base is a diffusers folder, whose text encoders encode the prompt
    once and are let go. Raises UserError for files that are missing or broken, or that do not belong together.
    """
    require_diffusers()
    weights = one_step_lora.read(lora)
    if not weights.unet:
        raise UserError(f"{weights.name} is a LoRA for {weights.base}, and {base} has a U-Net: give the right base.")
    chosen = choose_recipe(recipe or weights.recipe)
    placement = Placement(device or torch.device("cpu"), offload)
    condition = open_text_encoders(base, device=placement.device, dtype=dtype)(prompt or chosen.prompt)
    unet, vae, process = open_unet(base, dtype)
    merge_update(unet, weights.unet, weights.name, "the base's U-Net", weights.base)
    merge_update(vae, weights.vae, weights.name, "the base's VAE", weights.base)
    denoiser = PromptedDenoiser(unet, predict, condition, placement)
    if needs_float32(vae, dtype):
        vae.float()
    codec = LatentCodec(vae, placement, float(vae.config.scaling_factor), budget)
    return StandaloneModel(SRModel(on_unet(chosen, process), denoiser, codec), (unet, vae), "")


def predict(unet: Any, latent: Tensor, timestep: Tensor, prompt: Tensor, pooled: Tensor) -> Tensor:
    """The U-Net's raw prediction, in the prompt's precision."""
    return call_unet(unet, latent.to(prompt.dtype), timestep, prompt, pooled)


def call_unet(unet: Any, z_t: Tensor, timesteps: Tensor, prompt: Tensor, pooled: Tensor) -> Tensor:
    """A U-Net's prediction for latents (B, c, h, w) at timesteps (B,). `pooled` (B, 0) for all but SDXL, which is also
    told the picture's size, and that nothing is cropped."""
    added = None
    if pooled.shape[-1]:
        height, width = (8 * side for side in z_t.shape[-2:])
        sizes = z_t.new_tensor([height, width, 0, 0, height, width]).expand(len(z_t), -1)
        added = {"text_embeds": pooled, "time_ids": sizes}
    return unet(z_t, timesteps, encoder_hidden_states=prompt, added_cond_kwargs=added, return_dict=False)[0]
