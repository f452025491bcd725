"""HYPIR (arXiv 2507.20590): a LoRA on the U-Net of Stable Diffusion 2.1-base, which starts from the LR's latent at
t = 200: z_0 = (z - sigma e) / alpha.

The published file is `HYPIR_sd2.pth`: peft's LoRA of the U-Net's convolutions and attention blocks, without its first
convolution, with alpha = r. The VAE is the base's own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..checkpoints.conditions import All, AnyOf, Has, Not
from ..checkpoints.header import header_of
from ..checkpoints.low_rank import Adapter, named
from ..checkpoints.weights_file import read_weights
from ..core.recipe import Recipe
from ..core.step import OneStep
from . import adapter_file, peft_file
from .bases import SD21, SD21_FOOTPRINT
from .family import LoraFamily, OneStepLora
from .lora_files import ATTENTION

BASE = replace(SD21, prediction="epsilon")
CONVOLUTIONS = ("conv", "conv1", "conv2", "conv_shortcut", "conv_out")
TRAINED = named(*ATTENTION, *CONVOLUTIONS, "proj_in", "proj_out", "ff.net.2", "ff.net.0.proj")

RECIPE = Recipe(
    "hypir",
    "HYPIR on Stable Diffusion 2.1",
    "arXiv 2507.20590",
    OneStep(200.0),
    scale=1,
    tile=64,
    overlap=32,
    multiple=1,
    color="wavelet",
    shortest=64,
    footprint=SD21_FOOTPRINT,
)
_PUBLISHED = All(
    Has(*(f"{module}.lora_A.default.weight" for module in ("conv_out", "mid_block.resnets.0.conv1"))),
    Not(Has("conv_in.lora_A.default.weight"), "has a LoRA on the U-Net's first convolution"),
)


def read(family: LoraFamily, path: Path, partner: Path | None) -> OneStepLora:
    """Read `HYPIR_sd2.pth` or its single file. Raises UserError for a file that is incomplete."""
    file = read_weights(path)
    if adapter_file.is_single(header_of(file)):
        return adapter_file.read(family, file, BASE, RECIPE.name, [adapter_file.UNET_LORA], {"unet": TRAINED})
    found = peft_file.by_adapter(file.tensors, file.name, alpha=None)
    network = Adapter("unet", peft_file.joined(found, found, file, ()), trained=TRAINED)
    return OneStepLora(family, file.name, BASE, RECIPE.name, (network,))


FAMILY = LoraFamily(
    name="hypir",
    title="HYPIR",
    network="unet",
    licence="HYPIR Software License, non-commercial; the base has its own",
    citation=RECIPE.citation,
    condition=AnyOf(_PUBLISHED, adapter_file.condition("hypir")),
    recipes={RECIPE.name: RECIPE},
    summary=lambda header: f"HYPIR: U-Net LoRA, rank {adapter_file.ranks(header)}",
    read=read,
    save=adapter_file.save,
)
