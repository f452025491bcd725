"""PiSA-SR (arXiv 2412.03017): two LoRAs on Stable Diffusion 2.1-base, one for fidelity (pixel) and one for detail
(semantic), each with a strength that a user can choose at every run.

The published file is `pisa_sr.pkl`. The network's output e at t = 1 is the difference between the LR's latent and the
result's, and with the strengths p and s

    z_0 = z - [p e_pixel + s (e_both - e_pixel)] = z - [s e_both + (p - s) e_pixel],

where e_both has both LoRAs in the network. If p = s the network runs once, with both; otherwise twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..checkpoints.conditions import AnyOf, HasSuffix
from ..checkpoints.header import header_of
from ..checkpoints.low_rank import Adapter, under
from ..checkpoints.weights_file import read_weights, shortened
from ..core.recipe import Recipe
from ..core.step import Residual
from ..errors import UserError
from . import adapter_file, peft_file
from .bases import SD21, SD21_FOOTPRINT
from .family import LoraFamily, OneStepLora, Strengths
from .lora_files import UNET

PIXEL, SEMANTIC = "pixel", "semantic"
BASE = replace(SD21, prediction="epsilon")
PREFIX = "state_dict_unet/"
PUBLISHED_NAMES = {PIXEL: "pix", SEMANTIC: "sem"}
PARTS = ("encoder", "decoder", "others")  # of the U-Net; each is a LoRA of its own in the file

RECIPE = Recipe(
    "pisa-sr",
    "PiSA-SR on Stable Diffusion 2.1",
    "arXiv 2412.03017",
    Residual(1.0),
    scale=1,
    tile=96,
    overlap=32,
    multiple=1,
    color="adain",
    shortest=64,
    footprint=SD21_FOOTPRINT,
)


def read(family: LoraFamily, path: Path, partner: Path | None) -> OneStepLora:
    """Read `pisa_sr.pkl` or its single file. Raises UserError for a file that is incomplete."""
    file = read_weights(path)
    if adapter_file.is_single(header_of(file)):
        parts, trained = [f"network/{name}/" for name in PUBLISHED_NAMES], dict.fromkeys(PUBLISHED_NAMES, UNET.trained)
        return adapter_file.read(family, file, BASE, RECIPE.name, parts, trained)
    others = sorted(name for name in file.tensors if not name.startswith(PREFIX))
    if others:
        raise UserError(
            f"{file.name} contains weights that are not PiSA-SR's ({shortened(others)}): download it again."
        )
    found = peft_file.by_adapter(under(file.tensors, PREFIX), file.name)
    adapters = []
    for name, published in PUBLISHED_NAMES.items():
        parts = [f"default_{part}_{published}" for part in PARTS]
        lists = [f"unet_lora_{part}_modules_{published}" for part in PARTS]
        trained = peft_file.unlisted(file, lists, UNET.trained)
        adapters.append(Adapter(name, peft_file.joined(found, parts, file, lists), trained=trained))
    return OneStepLora(family, file.name, BASE, RECIPE.name, tuple(adapters))


def passes(step: Residual, strengths: Strengths) -> Sequence[tuple[Residual, Strengths]]:
    """Those of e_both and e_pixel that the strengths give a weight."""
    pixel, semantic = strengths[PIXEL], strengths[SEMANTIC]
    both, pixel_only = {PIXEL: 1.0, SEMANTIC: 1.0}, {PIXEL: 1.0, SEMANTIC: 0.0}
    weighted = [(weight, scales) for weight, scales in ((semantic, both), (pixel - semantic, pixel_only)) if weight]
    return [
        (replace(step, weight=weight, kept=0.0 if number else 1.0), scales)
        for number, (weight, scales) in enumerate(weighted or [(0.0, both)])
    ]


FAMILY = LoraFamily(
    name="pisa-sr",
    title="PiSA-SR",
    network="unet",
    licence="Apache-2.0 by its README; the base has its own",
    citation=RECIPE.citation,
    condition=AnyOf(HasSuffix(".lora_A.default_encoder_pix.weight"), adapter_file.condition("pisa-sr")),
    recipes={RECIPE.name: RECIPE},
    summary=lambda header: f"PiSA-SR: pixel and semantic U-Net LoRA, rank {adapter_file.ranks(header)}",
    read=read,
    strengths=(0.0, 2.0),
    passes=passes,
    save=adapter_file.save,
)
