"""diffusers' names of VAE modules, compared with a conversion the other way."""

from __future__ import annotations

import re

import torch
from diffusers import AutoencoderKL
from onestep_sr.sr_models.checkpoints.vae_names import diffusers_vae_name
from onestep_sr.sr_models.families.lora_files import VAE_TRAINED
from small_sd3 import FULL_WIDTHS, original_vae_name


def test_every_module_that_a_lora_changes_gets_its_name() -> None:
    levels = len(FULL_WIDTHS)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    with torch.device("meta"):
        vae = AutoencoderKL(block_out_channels=FULL_WIDTHS, layers_per_block=2, **blocks)
    modules = [name for name, _ in vae.named_modules() if re.fullmatch(VAE_TRAINED, name)]
    assert len(modules) == 32
    for module in modules:
        assert diffusers_vae_name(original_vae_name(f"{module}.weight").removesuffix(".weight")) == module
