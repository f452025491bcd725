"""OMGSR-S (arXiv 2508.08227): a LoRA on Stable Diffusion 2.1-base and on its VAE's encoder, which starts from the LR's
latent at t = 273: z_0 = (z - sigma e) / alpha.

The published files are two folders of peft's, `unet_lora_adapter` and `vae_encoder_lora_adapter`, each with
`adapter_model.safetensors` and `adapter_config.json`. Both change convolutions and attention. The second one's names
start at the encoder, so `quant_conv` has no LoRA.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from ..checkpoints import low_rank
from ..checkpoints.conditions import AnyOf, Has
from ..checkpoints.header import Header, header_of
from ..checkpoints.low_rank import Adapter, Update, named
from ..checkpoints.metadata import broken_description, read_json
from ..checkpoints.weights_file import WeightsFile, read_weights
from ..core.recipe import Recipe
from ..core.step import OneStep
from ..errors import UserError
from . import adapter_file
from .bases import SD21, SD21_FOOTPRINT
from .family import LoraFamily, OneStepLora
from .lora_files import ATTENTION, CONVOLUTIONS

BASE = replace(SD21, prediction="epsilon")
PREFIX = "base_model.model."
FILES = ("unet_lora_adapter/adapter_model.safetensors", "vae_encoder_lora_adapter/adapter_model.safetensors")
CONFIG = "adapter_config.json"
TRAINED = named(*ATTENTION, *CONVOLUTIONS)
ENCODER = "encoder."
TRAINED_VAE = re.escape(ENCODER) + TRAINED

RECIPE = Recipe(
    "omgsr-s",
    "OMGSR-S on Stable Diffusion 2.1",
    "arXiv 2508.08227",
    OneStep(273.0),
    scale=1,
    tile=64,
    overlap=32,
    multiple=1,
    color="adain",
    shortest=64,
    footprint=SD21_FOOTPRINT,
)
_ENTRANCE = f"{PREFIX}conv_in.lora_A.weight"
_UNET = Has(_ENTRANCE, f"{PREFIX}mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight")
_VAE = Has(_ENTRANCE, f"{PREFIX}mid_block.attentions.0.to_q.lora_A.weight")


def read(family: LoraFamily, path: Path, partner: Path | None) -> OneStepLora:
    """Read one of the two published files and the other one, or the single file.

    Raises UserError for files that are missing or incomplete, and for two files for the same part.
    """
    file = read_weights(path)
    if adapter_file.is_single(header_of(file)):
        parts, trained = (adapter_file.UNET_LORA, adapter_file.VAE_LORA), {"unet": TRAINED, "vae": TRAINED_VAE}
        return adapter_file.read(family, file, BASE, RECIPE.name, parts, trained)
    other = read_weights(partner or _partner(path, FILES[0] if _is_vae(file) else FILES[1]))
    unet, vae = (other, file) if _is_vae(file) else (file, other)
    for part, condition, name in ((unet, _UNET, FILES[0]), (vae, _VAE, FILES[1])):
        if missing := condition.missing(header_of(part)):
            raise UserError(f"{part.path} is not OMGSR-S's {name} (it {missing}): choose that file.")
    network = Adapter("unet", _update(unet), trained=TRAINED)
    inside = {f"{ENCODER}{module}": layer for module, layer in _update(vae).items()}
    encoder = Adapter("vae", inside, trained=TRAINED_VAE)
    return OneStepLora(family, f"{unet.path.parent.name}/{unet.name}", BASE, RECIPE.name, (network,), (encoder,))


def _is_vae(file: WeightsFile) -> bool:
    return not _VAE.missing(header_of(file))


def _partner(path: Path, name: str) -> Path:
    found = path.parent.parent / name
    if not found.is_file():
        raise UserError(
            f"{path} is one part of an OMGSR-S LoRA, but {found} does not exist: copy it there, or choose the second "
            "file."
        )
    return found


def _update(file: WeightsFile) -> Update:
    """A file's LoRA, at the alpha that its description states; without one, alpha = r as published."""
    others = {name: tensor for name, tensor in file.tensors.items() if not name.startswith(PREFIX)}
    update = low_rank.parse(low_rank.under(file.tensors, PREFIX) | others, file.name)
    config = file.path.with_name(CONFIG)
    if not config.is_file():
        return update
    try:
        alpha = float(read_json(config.read_text("utf-8", "replace"), str(config))["lora_alpha"])
    except (KeyError, TypeError, ValueError) as error:
        raise broken_description(str(config), error) from error
    return {module: replace(layer, alpha=alpha) for module, layer in update.items()}


def _summary(header: Header) -> str:
    parts = {"U-Net": _UNET, "VAE encoder": _VAE}
    held = [part for part, condition in parts.items() if not condition.missing(header)] or list(parts)
    return f"OMGSR-S: {' and '.join(held)} LoRA, rank {adapter_file.ranks(header)}"


FAMILY = LoraFamily(
    name="omgsr-s",
    title="OMGSR-S",
    network="unet",
    licence="not stated by its authors; the base has its own",
    citation=RECIPE.citation,
    condition=AnyOf(_UNET, _VAE, adapter_file.condition("omgsr-s")),
    recipes={RECIPE.name: RECIPE},
    summary=_summary,
    read=read,
    files=FILES,
    save=adapter_file.save,
)
