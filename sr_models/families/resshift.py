"""The published x4 files of TAD-SR, SinSR and ResShift, which share one network.

The weights do not show the schedule that they were trained with, so it is detected from the published file name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..checkpoints.conditions import All, Condition, Has, HasPrefix, Not, Shape
from ..checkpoints.header import Header, header_of
from ..checkpoints.weights_file import WeightsFile, beside, fill, read_weights
from ..codecs.autoencoder import AutoencoderCodec
from ..core.model import SRModel
from ..core.network_denoiser import NetworkDenoiser
from ..core.recipe import Footprint, Recipe
from ..core.schedule import ResShiftSchedule
from ..core.step import ResShiftStep
from ..errors import UserError
from ..networks.swin_unet import SwinUNet, SwinUNetConfig
from ..networks.vq_autoencoder import VQAutoencoder, VQConfig
from .bases import MAPPED
from .family import ModelFamily, OpenedModel, OpenOptions

NETWORK = Has("time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.1.blocks.0.attn.qkv.weight")
STACK = "feature_extractor."  # convolutions for the LR picture, of models that restore without enlarging
VQ = Has("quantize.embedding.weight", "encoder.conv_in.weight", "decoder.conv_out.weight")
VALUES_PER_PIXEL = 3600  # of one pass of the network, computed by benchmarks/tile_cost.py
FOOTPRINT = Footprint(weights=118_593_583 + 55_322_782, per_pixel=VALUES_PER_PIXEL, mapped=MAPPED)


@dataclass(frozen=True)
class Autoencoder:
    """A published VQ autoencoder: its file, title and sizes."""

    file: str
    title: str
    config: VQConfig

    @property
    def condition(self) -> Condition:
        return All(VQ, Shape("quantize.embedding.weight", self.config.codes, self.config.latent_channels))


F4 = Autoencoder("autoencoder_vq_f4.pth", "VQ-f4 autoencoder", VQConfig())

T15 = ResShiftSchedule()
T4 = ResShiftSchedule(steps=4, min_noise=0.2, largest_start=1.0)  # the journal version has no bound

PAPER = "arXiv 2307.12348"
TILE = 512  # as published: up to 512 px of the picture in one window

RECIPES = {
    recipe.name: replace(recipe, footprint=FOOTPRINT)
    for recipe in (
        Recipe("tad-sr", "TAD-SR, one step", "arXiv 2408.07476", ResShiftStep(T15), tile=TILE),
        Recipe("sinsr", "SinSR, one step", "arXiv 2311.14760", ResShiftStep(T15), tile=TILE),
        Recipe("resshift", "ResShift, 15 steps", PAPER, ResShiftStep(T15, 15, stochastic=True), tile=TILE),
        Recipe("resshift-s4", "ResShift, 4 steps", PAPER, ResShiftStep(T4, 4, stochastic=True), tile=TILE),
        Recipe("resshift-ddim", "ResShift, 15 steps, deterministic", PAPER, ResShiftStep(T15, 15), tile=TILE),
        Recipe("resshift-s4-ddim", "ResShift, 4 steps, deterministic", PAPER, ResShiftStep(T4, 4), tile=TILE),
    )
}


def recipe_for(file_name: str, chosen: str | None = None) -> Recipe:
    """The chosen recipe, else the one of the published file name, else TAD-SR's.

    Raises UserError for a recipe that this family does not have.
    """
    if chosen is not None:
        return FAMILY.recipe(chosen)
    name = file_name.lower()
    if "sinsr" in name:
        return RECIPES["sinsr"]
    if "resshift" in name:
        return RECIPES["resshift-s4" if "_s4" in name else "resshift"]
    return RECIPES["tad-sr"]


def load_network(file: WeightsFile, dtype: torch.dtype) -> SwinUNet:
    with torch.device("meta"):
        network = SwinUNet(SwinUNetConfig(published_mask=True))
    fill(network, file, FAMILY.title, dtype)
    return network


def load_autoencoder(file: WeightsFile, dtype: torch.dtype, kind: Autoencoder = F4) -> VQAutoencoder:
    """Raises UserError for a file that is not this autoencoder."""
    if kind.condition.missing(header_of(file)):
        raise UserError(f"{file.name} is not the {kind.title}: choose {kind.file}.")
    with torch.device("meta"):
        autoencoder = VQAutoencoder(kind.config)
    fill(autoencoder, file, kind.title, dtype)
    return autoencoder


def autoencoder_path(header: Header, kind: Autoencoder, chosen: Path | None) -> Path:
    """The chosen file, else the one in the model's folder. Raises UserError if it does not exist."""
    path = beside(header.path, kind.file) if chosen is None else chosen
    if not path.is_file():
        raise UserError(
            f"{header.name} needs an autoencoder, but {path} does not exist: copy {kind.file} there, or choose "
            "the autoencoder's file."
        )
    return path


def opened(
    family: ModelFamily, recipe: Recipe, network: SwinUNet, autoencoder: VQAutoencoder, options: OpenOptions
) -> OpenedModel:
    """A model of this kind of network and autoencoder."""
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    sizes = autoencoder.config
    codec = AutoencoderCodec(
        autoencoder, sizes.factor, sizes.latent_channels, budget=options.budget, spill=options.spill
    )
    recipe = replace(recipe, multiple=network.config.multiple)
    model = SRModel(recipe, NetworkDenoiser(network, recipe.footprint.per_pixel), codec)
    return OpenedModel(family, model, (network, autoencoder))


def _outline(header: Header, chosen: str | None) -> tuple[Recipe, int]:
    return recipe_for(header.name, chosen), F4.config.factor


def _open(header: Header, options: OpenOptions) -> OpenedModel:
    recipe, path = recipe_for(header.name, options.recipe), autoencoder_path(header, F4, options.autoencoder)
    network = load_network(read_weights(header.path), options.dtype)
    return opened(FAMILY, recipe, network, load_autoencoder(read_weights(path), options.dtype), options)


FAMILY = ModelFamily(
    name="resshift",
    title="TAD-SR, SinSR or ResShift x4",
    licence="non-commercial: S-Lab License 1.0, and CC BY-NC-SA 4.0 for SinSR",
    citation=PAPER,
    condition=All(NETWORK, Not(HasPrefix(STACK), "is a model that restores without enlarging")),
    recipes=RECIPES,
    summary=lambda header: f"{recipe_for(header.name).title}, x4",
    outline=_outline,
    open=_open,
    beside=(F4.file,),
)
