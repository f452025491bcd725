"""TSD-SR (arXiv 2411.18263): a LoRA for Stable Diffusion 3 medium and for its VAE's encoder.

The published files are `transformer.safetensors` and `vae.safetensors`. Both use the prefix `transformer.`; the VAE's
modules follow with `encoder.`. The step starts from the LR's latent at the timestep of pure noise.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ..core.recipe import Recipe
from ..core.step import OneStep
from . import lora_files
from .bases import SD3_FOOTPRINT, SD3_MEDIUM, SD35_MEDIUM
from .family import LoraFamily
from .lora_files import TRANSFORMER

# Spelling as published.
TSD_PROMPT = (
    "Cinematic, High Contrast, highly detailed, taken using a Canon EOS R camera, hyper detailed photo - realistic "
    "maximum detail, 32k, Color Grading, ultra HD, extrememeticulous detailing, skin pore detailing, hyper sharpness, "
    "perfect without deformations."
)
SD35_WARNING = (
    f"This LoRA was trained on {SD3_MEDIUM}. Results on {SD35_MEDIUM} are untested and may be worse: use {SD3_MEDIUM} "
    "for the published quality."
)
TSD_SR = Recipe(
    lora_files.DEFAULT,
    "TSD-SR on Stable Diffusion 3",
    "arXiv 2411.18263",
    OneStep(1000.0),
    scale=1,
    tile=64,
    overlap=8,
    multiple=2,
    color="wavelet",
    largest_tile=384,  # SD3's position table has 192 patches per side, each 2 latent pixels wide
    shortest=64,
    prompt=TSD_PROMPT,
    footprint=SD3_FOOTPRINT,
)
RECIPES = {recipe.name: recipe for recipe in (TSD_SR, replace(TSD_SR, name=lora_files.MSE, color="adain"))}

FAMILY = LoraFamily(
    name="tsd-sr",
    title="TSD-SR",
    licence="code Apache-2.0; the weights build on Stable Diffusion 3",
    citation=TSD_SR.citation,
    condition=TRANSFORMER.condition,
    recipes=RECIPES,
    summary=lambda header: lora_files.summary(header, "TSD-SR", TRANSFORMER),
    network=TRANSFORMER.network,
    read=partial(lora_files.read, layout=TRANSFORMER),
    files=TRANSFORMER.files,
    save=lora_files.save,
    near={SD35_MEDIUM.title: SD35_WARNING},
)
