"""LoRAs that `onestep-sr train` makes on Stable Diffusion 1.5, 2.1 and SDXL: TSD-SR's way on a U-Net.

A set is `unet.safetensors` and `vae.safetensors`, with the prefixes `unet.` and `vae.`. What is trained on Stable
Diffusion 3 has TSD-SR's own form, and is opened as that.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ..core.step import OneStep
from . import lora_files, tsd_sr
from .family import LoraFamily
from .lora_files import UNET

# The LR's latent is taken for the process's noisiest input; a U-Net takes windows of any size.
OWN = replace(
    tsd_sr.TSD_SR, name="own-lora", title="Own LoRA on a Stable Diffusion", step=OneStep(999.0), largest_tile=0
)

FAMILY = LoraFamily(
    name="own-lora",
    title="self-trained",
    licence="yours; the base: its own",
    citation="arXiv 2411.18263 (the method)",
    condition=UNET.condition,
    # By the names that workflows, commands and files give them.
    recipes={lora_files.DEFAULT: OWN, lora_files.MSE: replace(OWN, name="own-lora-mse", color="adain")},
    summary=lambda header: lora_files.summary(header, "Self-trained", UNET),
    read=partial(lora_files.read, layout=UNET),
    files=UNET.files,
)
