"""LoRAs that `onestep-sr train` creates for Stable Diffusion 1.5, 2.1 and SDXL: TSD-SR's method on a U-Net.

The files are `unet.safetensors` and `vae.safetensors`, with the prefixes `unet.` and `vae.`. LoRAs trained on Stable
Diffusion 3 use TSD-SR's format, and are opened as TSD-SR.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ..core.recipe import Footprint
from ..core.step import OneStep
from . import lora_files, tsd_sr
from .family import LoraFamily
from .lora_files import UNET

# The LR's latent is the input at the noisiest timestep. A U-Net supports tiles of any size.
OWN = replace(
    tsd_sr.TSD_SR,
    name="own-lora",
    title="Own LoRA on a Stable Diffusion",
    step=OneStep(999.0),
    largest_tile=0,
    footprint=Footprint(),
)

FAMILY = LoraFamily(
    name="own-lora",
    title="self-trained",
    licence="yours; the base has its own",
    citation="arXiv 2411.18263 (the method)",
    condition=UNET.condition,
    # Under the names that workflows, commands and files use.
    recipes={lora_files.DEFAULT: OWN, lora_files.MSE: replace(OWN, name="own-lora-mse", color="adain")},
    summary=lambda header: lora_files.summary(header, "Self-trained", UNET),
    network=UNET.network,
    read=partial(lora_files.read, layout=UNET),
    files=UNET.files,
    save=lora_files.save,
)
