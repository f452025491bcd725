"""GDPO-SR (arXiv 2603.16769): a whole U-Net and VAE in place of those of Stable Diffusion 2.1-base.

The published files are diffusers folders, `unet` and `vae`, with the LoRA merged. The LR's latent with noise of the
level of t = 250 goes through the network at t = 100: z_0 = (z_n - sigma e) / alpha.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..checkpoints.conditions import All, AnyOf, Has, InFolder
from ..checkpoints.header import header_of
from ..checkpoints.weights_file import read_weights
from ..core.recipe import Recipe
from ..core.step import OneStep
from . import adapter_file
from .bases import SD21, SD21_FOOTPRINT
from .family import LoraFamily, OneStepLora

BASE = replace(SD21, prediction="epsilon")
UNET, VAE = "unet", "vae"
FILES = tuple(f"{part}/diffusion_pytorch_model.safetensors" for part in (UNET, VAE))

RECIPE = Recipe(
    "gdpo-sr",
    "GDPO-SR on Stable Diffusion 2.1",
    "arXiv 2603.16769",
    OneStep(100.0, noised=True, noise_timestep=250.0),
    scale=1,
    tile=96,
    overlap=32,
    multiple=1,
    color="adain",
    shortest=64,
    prompt="clean, high-resolution, 8k,",
    footprint=SD21_FOOTPRINT,
)
# Its networks have the names of any other Stable Diffusion's, so the place counts: a base has more beside them.
_UNET = All(
    InFolder(UNET, beside=VAE), Has("conv_in.weight", "conv_out.weight", "down_blocks.0.resnets.0.conv1.weight")
)
_VAE = All(InFolder(VAE, beside=UNET), Has("encoder.conv_in.weight", "decoder.conv_out.weight"))


def read(family: LoraFamily, path: Path, partner: Path | None) -> OneStepLora:
    """Read the published files, given one of them, or the single file. Raises UserError for one that is missing."""
    file = read_weights(path)
    if adapter_file.is_single(header_of(file)):
        return adapter_file.read(family, file, BASE, RECIPE.name, adapter_file.WHOLE_NETWORKS)
    folder = path.parent.parent
    unet, vae = (read_weights(folder / name).tensors for name in FILES)
    return OneStepLora(family, f"{folder.name}/{FILES[0]}", BASE, RECIPE.name, replaced=unet, replaced_vae=vae)


FAMILY = LoraFamily(
    name="gdpo-sr",
    title="GDPO-SR",
    network="unet",
    licence="Apache-2.0 by its README; the base has its own",
    citation=RECIPE.citation,
    condition=AnyOf(_UNET, _VAE, adapter_file.condition("gdpo-sr")),
    recipes={RECIPE.name: RECIPE},
    summary=lambda header: "GDPO-SR: whole U-Net and VAE",
    read=read,
    files=FILES,
    save=adapter_file.save,
    tagged_prompt="{tags}, {text}",
)
