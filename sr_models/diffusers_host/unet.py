"""Open Stable Diffusion 1.5, 2.1 and SDXL with diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..families.bases import unet_kind
from .base import OpenedBase
from .unet_files import needs_float32, open_unet
from .unet_prompts import open_text_encoders

__all__ = ["call_unet", "open_base", "open_text_encoders"]


def open_base(base: Path, dtype: torch.dtype) -> OpenedBase:
    """Open a diffusers folder or a checkpoint file. A VAE that overflows in `dtype` uses float32.

    Raises UserError as `open_unet`.
    """
    unet, vae, process = open_unet(base, dtype)
    if needs_float32(vae, dtype):
        vae.float()
    config: Any = unet.config
    kind = unet_kind(config.cross_attention_dim, process.prediction)
    return OpenedBase(kind, unet, vae, process, call_unet)


def call_unet(unet: Any, z_t: Tensor, timesteps: Tensor, prompt: Tensor, pooled: Tensor) -> Tensor:
    """A U-Net's prediction for latents (B, c, h, w) at timesteps (B,).

    `pooled` is (B, 0) except for SDXL, which also gets the picture's size and a crop offset of 0.
    """
    added = None
    if pooled.shape[-1]:
        height, width = (8 * side for side in z_t.shape[-2:])
        sizes = z_t.new_tensor([height, width, 0, 0, height, width]).expand(len(z_t), -1)
        added = {"text_embeds": pooled, "time_ids": sizes}
    return unet(z_t, timesteps, encoder_hidden_states=prompt, added_cond_kwargs=added, return_dict=False)[0]
