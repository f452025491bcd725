"""TAD-faceir, and ResShift's model for faces, its teacher: they restore a face of 512 px at the size that it has.

A request for a larger result enlarges the picture first, and a smaller picture is restored at 512 px and shrunk.
"""

from __future__ import annotations

import torch

from ..checkpoints.conditions import All, Has, Shape
from ..checkpoints.header import Header
from ..checkpoints.weights_file import WeightsFile, fill, read_weights
from ..core.recipe import Footprint, Recipe
from ..core.schedule import ResShiftSchedule
from ..core.step import ResShiftStep, Step
from ..networks.swin_unet_faces import FaceUNet
from ..networks.vq_autoencoder import FACES_F8
from .bases import MAPPED
from .family import ModelFamily, OpenedModel, OpenOptions
from .resshift import NETWORK, STACK, T4, VALUES_PER_PIXEL, Autoencoder, autoencoder_path, load_autoencoder, opened

F8 = Autoencoder("ffhq512_vq_f8_dim8_face.pth", "VQ-f8 autoencoder of models for faces", FACES_F8)
FOOTPRINT = Footprint(118_931_604 + 77_009_115, VALUES_PER_PIXEL, MAPPED // 2)
SCHEDULE = ResShiftSchedule(steps=4, min_noise=0.2)


def _recipe(name: str, title: str, citation: str, step: Step) -> Recipe:
    return Recipe(name, title, citation, step, scale=1, tile=64, overlap=8, shortest=64, footprint=FOOTPRINT)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        _recipe("tad-faceir", "TAD-faceir, one step", "arXiv 2408.07476", ResShiftStep(SCHEDULE)),
        _recipe("resshift-faceir", "ResShift for faces, 4 steps", "arXiv 2403.07319", ResShiftStep(T4, 4, True)),
    )
}


def recipe_for(file_name: str, chosen: str | None = None) -> Recipe:
    """The chosen recipe, else ResShift's for its published file name, else TAD-faceir's.

    Raises UserError for a recipe that this family does not have.
    """
    if chosen is not None:
        return FAMILY.recipe(chosen)
    return RECIPES["resshift-faceir" if "resshift" in file_name.lower() else "tad-faceir"]


def load_network(file: WeightsFile, dtype: torch.dtype) -> FaceUNet:
    with torch.device("meta"):
        network = FaceUNet()
    fill(network, file, FAMILY.title, dtype)
    return network


def _outline(header: Header, chosen: str | None) -> tuple[Recipe, int]:
    return recipe_for(header.name, chosen), F8.config.factor


def _open(header: Header, options: OpenOptions) -> OpenedModel:
    recipe, path = recipe_for(header.name, options.recipe), autoencoder_path(header, F8, options.autoencoder)
    network = load_network(read_weights(header.path), options.dtype)
    return opened(FAMILY, recipe, network, load_autoencoder(read_weights(path), options.dtype, F8), options)


FAMILY = ModelFamily(
    name="tad-faceir",
    title="TAD-faceir or ResShift for faces",
    licence="non-commercial: S-Lab License 1.0 of ResShift, whose autoencoder and weights both build on",
    citation="arXiv 2408.07476",
    # ResShift's models for inpainting have a stack as well, for the picture and its mask.
    condition=All(NETWORK, Has(f"{STACK}8.op.weight"), Shape(f"{STACK}0.weight", 16, 3, 3, 3)),
    recipes=RECIPES,
    summary=lambda header: f"{recipe_for(header.name).title}, for faces of 512 px",
    outline=_outline,
    open=_open,
    beside=(F8.file,),
)
