"""TAD-SeeSR (arXiv 2408.07476): SeeSR (arXiv 2311.16518) in one step, on Stable Diffusion 2-base.

The published files are diffusers folders, `unet` and `controlnet`, of whole networks. After each attention to the
prompt, both have an attention to an embedding of the picture, which is RAM's with DAPE (`tagger`). The ControlNet sees
the enlarged picture. The step starts at t = 999 from the LR's latent with noise, or from noise alone:
z_0 = (z - sigma e) / alpha.

The published form with four steps goes on from z_0 with new noise, at t = 749, 499 and 249. Before each step, the
ControlNet and RAM look at a mixture of the result so far and the enlarged picture. The prompt keeps its tags. The
published script has an option for the result's share, .5, which it does not pass on, so that it is .4.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..checkpoints.conditions import AnyOf, Has
from ..checkpoints.header import read_header
from ..checkpoints.low_rank import under
from ..checkpoints.weights_file import WeightsFile, read_weights, shortened
from ..core.recipe import Footprint, Recipe
from ..core.step import OneStep
from ..errors import UserError
from . import adapter_file
from .bases import SD21, SD21_FOOTPRINT
from .family import LoraFamily, OneStepLora

BASE = replace(SD21, prediction="epsilon")
UNET, CONTROL = "unet", "controlnet"
FILES = tuple(f"{part}/diffusion_pytorch_model.safetensors" for part in (UNET, CONTROL))
IMAGE_ATTENTIONS = ".image_attentions."

# With the attentions to the picture, the ControlNet, whose results are beside the U-Net's, and the tagger.
FOOTPRINT = Footprint(
    SD21_FOOTPRINT.weights + 260_849_600 + 364_228_240 + 124_803_200 + 212_117_045,
    SD21_FOOTPRINT.per_pixel + 1700,
    SD21_FOOTPRINT.mapped,
)
RECIPE = Recipe(
    "tad-seesr",
    "TAD-SeeSR on Stable Diffusion 2",
    "arXiv 2408.07476",
    OneStep(999.0, noised=True),
    scale=1,
    tile=320,
    overlap=4,
    multiple=1,
    color="adain",
    shortest=64,
    footprint=FOOTPRINT,
)
FROM_NOISE = replace(RECIPE, name="tad-seesr-noise", step=OneStep(999.0, noised=True, from_noise=True))
FURTHER = tuple(OneStep(timestep, noised=True) for timestep in (749.0, 499.0, 249.0))
FOUR_STEPS, FOUR_FROM_NOISE = (
    replace(recipe, name=f"{recipe.name}-s4", title=f"{recipe.title}, 4 steps", further=FURTHER, result_share=0.4)
    for recipe in (RECIPE, FROM_NOISE)
)
_FIRST = "down_blocks.0.image_attentions.0.proj_in.weight"
_UNET = Has(_FIRST, "conv_out.weight")
_CONTROL = Has(_FIRST, "controlnet_cond_embedding.conv_in.weight")
_IN_UNET = adapter_file.WHOLE_NETWORKS[0]
_PARTS = (f"{_IN_UNET}{_FIRST}", f"{_IN_UNET}conv_out.weight", f"{adapter_file.CONTROL}{_FIRST}")


def read(family: LoraFamily, path: Path, partner: Path | None) -> OneStepLora:
    """Read the published files, given one of them, or the single file. Raises UserError for one that is missing or
    incomplete."""
    if adapter_file.is_single(read_header(path)):
        return _from_single(family, read_weights(path))
    folder = path.parent.parent
    unet, control = (read_weights(folder / name).tensors for name in FILES)
    for file, tensors in zip(FILES, (unet, control), strict=True):
        if _FIRST not in tensors:
            raise UserError(f"{folder / file} is incomplete (it lacks {shortened([_FIRST])}): download it again.")
    whole = OneStepLora(family, f"{folder.name}/{FILES[0]}", BASE, RECIPE.name, replaced=unet, control=control)
    return _with_image_attentions(whole)


def _from_single(family: LoraFamily, file: WeightsFile) -> OneStepLora:
    whole = adapter_file.read(family, file, BASE, RECIPE.name, _PARTS)
    return _with_image_attentions(replace(whole, control=under(file.tensors, adapter_file.CONTROL)))


def _with_image_attentions(whole: OneStepLora) -> OneStepLora:
    """The LoRA with the attentions to the picture apart from the rest of the U-Net."""
    images = {name: tensor for name, tensor in whole.replaced.items() if IMAGE_ATTENTIONS in name}
    rest = {name: tensor for name, tensor in whole.replaced.items() if name not in images}
    return replace(whole, replaced=rest, image_attentions=images)


FAMILY = LoraFamily(
    name="tad-seesr",
    title="TAD-SeeSR",
    network="unet",
    licence="Apache-2.0; the base has its own",
    citation=RECIPE.citation,
    condition=AnyOf(_UNET, _CONTROL, adapter_file.condition("tad-seesr")),
    recipes={recipe.name: recipe for recipe in (RECIPE, FROM_NOISE, FOUR_STEPS, FOUR_FROM_NOISE)},
    summary=lambda header: "TAD-SeeSR: whole U-Net and ControlNet with image attentions",
    read=read,
    save=adapter_file.save,
    files=FILES,
    tagged_prompt="{tags}, {text},clean, high-resolution, 8k, extremely detailed, best quality, sharp",
    sees_picture=True,
)
