"""A made-up method, as its author would add it: this file, and one line in the registry.

Its LoRA is for Stable Diffusion 2.1. The step starts from the LR's latent with noise at t = 250; the prompt is the
user's. Its file has its own prefixes, and weights that take the place of the U-Net's first convolution.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from onestep_sr.sr_models.checkpoints import low_rank
from onestep_sr.sr_models.checkpoints.conditions import All, Has, HasSuffix
from onestep_sr.sr_models.checkpoints.low_rank import Adapter
from onestep_sr.sr_models.checkpoints.weights_file import read_weights
from onestep_sr.sr_models.core.recipe import Recipe
from onestep_sr.sr_models.core.step import OneStep
from onestep_sr.sr_models.families.bases import SD21
from onestep_sr.sr_models.families.family import LoraFamily, OneStepLora

RECIPE = Recipe("glow", "Glow-SR", "made up", OneStep(250.0, noised=True), scale=1, tile=64, overlap=8, multiple=1)


def read(family: LoraFamily, path: Path, partner: Path | None) -> OneStepLora:
    file = read_weights(path)
    network, vae = (
        Adapter(part, low_rank.parse(low_rank.under(file.tensors, f"glow/{part}/"), path.name))
        for part in ("unet", "vae")
    )
    base = replace(SD21, prediction=file.metadata.get("prediction", "epsilon"))
    replaced = low_rank.under(file.tensors, "glow/instead/")
    return OneStepLora(family, path.name, base, RECIPE.name, (network,), (vae,), replaced)


GLOW = LoraFamily(
    name="glow-sr",
    title="Glow-SR",
    licence="none",
    citation=RECIPE.citation,
    condition=All(Has("glow/instead/conv_in.weight"), HasSuffix(".lora_A.weight")),
    recipes={RECIPE.name: RECIPE},
    summary=lambda header: "Glow-SR LoRA",
    network="unet",
    read=read,
)
