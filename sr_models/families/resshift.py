"""The published x4 files of ResShift's family: TAD-SR, SinSR and ResShift share one network.

Their weights alone do not tell the schedule they were trained on; the published file names do.
"""

from __future__ import annotations

import torch

from ..checkpoints.weights_file import WeightsFile, fill
from ..core.recipe import Recipe
from ..core.schedule import ResShiftSchedule
from ..core.step import ResShiftStep
from ..errors import UserError
from ..networks.swin_unet import SwinUNet, SwinUNetConfig
from ..networks.vq_autoencoder import VQAutoencoder

NETWORK_KEYS = {"time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.1.blocks.0.attn.qkv.weight"}
AUTOENCODER_KEYS = {"quantize.embedding.weight", "encoder.conv_in.weight", "decoder.conv_out.weight"}
AUTOENCODER_NAME = "autoencoder_vq_f4.pth"

T15 = ResShiftSchedule()
T4 = ResShiftSchedule(steps=4, min_noise=0.2)

RESSHIFT_FAMILY = {
    recipe.name: recipe
    for recipe in (
        Recipe("tad-sr", "TAD-SR, one step", "arXiv 2408.07476", ResShiftStep(T15)),
        Recipe("sinsr", "SinSR, one step", "arXiv 2311.14760", ResShiftStep(T15)),
        Recipe("resshift", "ResShift, 15 steps", "arXiv 2307.12348", ResShiftStep(T15, evaluations=15)),
        Recipe("resshift-s4", "ResShift, 4 steps", "arXiv 2307.12348", ResShiftStep(T4, evaluations=4)),
    )
}


def is_network(file: WeightsFile) -> bool:
    return file.tensors.keys() >= NETWORK_KEYS


def is_autoencoder(file: WeightsFile) -> bool:
    return file.tensors.keys() >= AUTOENCODER_KEYS


def recipe_for(file_name: str, chosen: str | None = None) -> Recipe:
    """The chosen recipe, else the one that the published file name stands for, else TAD-SR's.

    Raises UserError for a recipe that this family does not have.
    """
    if chosen is not None:
        if chosen not in RESSHIFT_FAMILY:
            raise UserError(f"Recipe {chosen!r} is unknown: choose one of {', '.join(RESSHIFT_FAMILY)}.")
        return RESSHIFT_FAMILY[chosen]
    name = file_name.lower()
    if "sinsr" in name:
        return RESSHIFT_FAMILY["sinsr"]
    if "resshift" in name:
        return RESSHIFT_FAMILY["resshift-s4" if "_s4" in name else "resshift"]
    return RESSHIFT_FAMILY["tad-sr"]


def load_network(file: WeightsFile, dtype: torch.dtype) -> SwinUNet:
    with torch.device("meta"):
        network = SwinUNet(SwinUNetConfig(published_mask=True))
    fill(network, file, "TAD-SR, SinSR or ResShift x4", dtype)
    return network


def load_autoencoder(file: WeightsFile, dtype: torch.dtype) -> VQAutoencoder:
    """Raises UserError for a file that is not `autoencoder_vq_f4.pth`."""
    if not is_autoencoder(file):
        raise UserError(f"{file.name} is not the VQ-f4 autoencoder: choose autoencoder_vq_f4.pth.")
    with torch.device("meta"):
        autoencoder = VQAutoencoder()
    fill(autoencoder, file, "VQ-f4 autoencoder", dtype)
    return autoencoder
