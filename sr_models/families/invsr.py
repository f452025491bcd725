"""InvSR (arXiv 2412.09013): SD-Turbo as it is, which starts from the LR's latent with noise that a second network
predicts from the LR picture: z_t = alpha z + sigma (mean + deviation n) at t = 199, z_0 = (z_t - sigma e) / alpha.

The published file is `noise_predictor_sd_turbo_v5.pth`, the second network. With two to five steps, DDIM goes on from
z_t without new noise. Timesteps are the published ones less 1, as the published code counts from 1. It upscales by 4
and takes pictures apart into pieces of 128 px; here the latent is divided into tiles of that size, and the predictor
sees the part of the picture that belongs to a tile.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path

import torch

from ..checkpoints.conditions import All, AnyOf, Has, Shape
from ..checkpoints.header import Header, header_of
from ..checkpoints.low_rank import under
from ..checkpoints.weights_file import WeightsFile, fill, read_weights
from ..core.recipe import Footprint, Recipe
from ..core.step import PredictedNoise
from ..networks.invsr import NoisePredictor, PredictorConfig
from . import adapter_file
from .bases import SD21_FOOTPRINT, SD_TURBO
from .family import LoraFamily, OneStepLora

ONE, *SEVERAL = ((199,), (199, 99), (199, 99, 49), (199, 149, 99, 49), (249, 199, 149, 99, 49))  # timesteps
HEAD = PredictorConfig().head
SIZED = ("down_blocks.0.resnets.0.conv1", "down_blocks.1.resnets.0.conv1", "time_embedding.linear_1")
# The predictor runs before the U-Net, and needs more: computed by benchmarks/network_memory.py.
FOOTPRINT = Footprint(SD21_FOOTPRINT.weights + 33_837_576, per_pixel=9300, mapped=SD21_FOOTPRINT.mapped)
RECIPE = Recipe(
    "invsr",
    "InvSR on SD-Turbo",
    "arXiv 2412.09013",
    PredictedNoise(ONE),
    scale=4,
    tile=64,
    overlap=32,
    multiple=8,
    shortest=64,
    prompt="Cinematic, high-contrast, photo-realistic, 8k, ultra HD, meticulous detailing, hyper sharpness, perfect "
    "without deformations",
    footprint=FOOTPRINT,
)
RECIPES = [RECIPE] + [
    replace(RECIPE, name=f"invsr-s{len(each)}", title=f"{RECIPE.title}, {len(each)} steps", step=PredictedNoise(each))
    for each in SEVERAL
]
_PREDICTOR = All(
    Has("encoder.conv_in.weight", "encoder.time_embedding.linear_1.weight"),
    Shape("encoder.conv_out.weight", 8, None, 3, 3),
)


def read(family: LoraFamily, path: Path, partner: Path | None) -> OneStepLora:
    """Read the published file, or the single file. Raises UserError for a file that is incomplete."""
    file = read_weights(path)
    if not adapter_file.is_single(header_of(file)):
        return OneStepLora(family, file.name, SD_TURBO, RECIPE.name, predictor=_predictor(file))
    lora = adapter_file.read(family, file, SD_TURBO, RECIPE.name, (adapter_file.PREDICTOR,))
    return replace(lora, predictor=_predictor(replace(file, tensors=under(file.tensors, adapter_file.PREDICTOR))))


def _predictor(file: WeightsFile) -> NoisePredictor:
    with torch.device("meta"):
        predictor = NoisePredictor(config_of(header_of(file)))
    fill(predictor, file, "InvSR", torch.float32)
    return predictor


def config_of(header: Header) -> PredictorConfig:
    """The sizes of a file's network, or the published ones if the file is broken."""
    first, second, embedding = ((header.shapes.get(f"encoder.{name}.weight") or (0,))[0] for name in SIZED)
    blocks = sum(name.startswith("encoder.down_blocks.0.") and name.endswith(".conv1.weight") for name in header.shapes)
    fits = blocks and embedding and all(width and width % HEAD == 0 for width in (first, second))
    return PredictorConfig((first, second), blocks, embedding) if fits else PredictorConfig()


def _summary(header: Header) -> str:
    return f"InvSR: noise predictor, {sum(map(prod, header.shapes.values())) / 1e6:.1f} M weights"


FAMILY = LoraFamily(
    name="invsr",
    title="InvSR",
    network="unet",
    licence="S-Lab License 1.0, non-commercial; the base has its own",
    citation=RECIPE.citation,
    condition=AnyOf(_PREDICTOR, adapter_file.condition("invsr")),
    recipes={recipe.name: recipe for recipe in RECIPES},
    summary=_summary,
    read=read,
    save=adapter_file.save,
)
