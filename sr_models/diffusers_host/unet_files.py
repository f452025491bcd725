"""Open Stable Diffusion 1.5, 2.1 or SDXL from a diffusers folder, or 2.1 from a checkpoint file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core.process import Process, variance_preserving
from ..errors import UserError
from .folder import open_part
from .unet_checkpoint import is_checkpoint, open_checkpoint

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


def is_unet(base: Path) -> bool:
    """Whether `base` is a diffusers folder or a checkpoint file with a U-Net. Raises UserError for a broken file."""
    return (base / "unet").is_dir() or is_checkpoint(base)


def open_unet(base: Path, dtype: torch.dtype) -> tuple[UNet2DConditionModel, Any, Process]:
    """U-Net, VAE and noise process of a diffusers folder or a checkpoint file, frozen, on the CPU.

    Raises UserError if files are missing or broken, or if the base does not predict noise or v.
    """
    if base.is_file():
        return open_checkpoint(base, dtype)
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    try:
        unet = open_part(UNet2DConditionModel, base, "unet", dtype)
        vae = open_part(AutoencoderKL, base, "vae", dtype)
        scheduler: Any = DDPMScheduler.from_pretrained(str(base), subfolder="scheduler")
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{base} cannot be read as a Stable Diffusion folder ({reason}): download it again.") from error
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise UserError(
            f"{base} uses prediction type {kind!r}, which is not supported: choose a base with epsilon or v_prediction."
        )
    process = variance_preserving("v" if kind == "v_prediction" else "epsilon", scheduler.alphas_cumprod)
    return unet.eval().requires_grad_(False), vae.eval().requires_grad_(False), process


def needs_float32(vae: Any, dtype: torch.dtype) -> bool:
    """Whether the VAE overflows in this precision, as SDXL's does in float16.

    Its file has to say so. diffusers adds a `force_upcast` of True to those that say nothing, as that of 2.1.
    """
    stated = "force_upcast" not in vae.config.get("_use_default_values", ())
    return dtype == torch.float16 and stated and bool(vae.config.get("force_upcast"))
