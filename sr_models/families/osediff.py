"""OSEDiff (arXiv 2406.08177): a LoRA on Stable Diffusion 2.1-base and on its VAE's encoder, which starts from the LR's
latent at t = 999: z_0 = (z - sigma e) / alpha.

The published file is `osediff.pkl`: peft's LoRA of the U-Net and of the encoder with `quant_conv`, and the whole first
convolution of the U-Net, which has a LoRA too. A second layout, `{"vae", "unet"}`, holds both networks with the LoRA
merged.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..checkpoints.conditions import All, AnyOf, Has, HasPrefix, HasSuffix
from ..checkpoints.header import Header, header_of
from ..checkpoints.low_rank import Adapter, under
from ..checkpoints.weights_file import WeightsFile, read_weights, shortened
from ..core.recipe import Recipe
from ..core.step import OneStep
from ..errors import UserError
from . import adapter_file, peft_file
from .bases import SD21, SD21_FOOTPRINT
from .family import LoraFamily, OneStepLora
from .lora_files import UNET as LAYOUT
from .lora_files import VAE_TRAINED

BASE = replace(SD21, prediction="epsilon")
UNET, VAE = "state_dict_unet/", "state_dict_vae/"
WHOLE_UNET, WHOLE_VAE = "unet/", "vae/"
REPLACED = {"conv_in.base_layer.weight": "conv_in.weight", "conv_in.base_layer.bias": "conv_in.bias"}
PARTS = ("encoder", "decoder", "others")  # of the U-Net; each is a LoRA of its own in the file
TRAINED = {"unet": LAYOUT.trained, "vae": VAE_TRAINED}

RECIPE = Recipe(
    "osediff",
    "OSEDiff on Stable Diffusion 2.1",
    "arXiv 2406.08177",
    OneStep(999.0),
    scale=1,
    tile=96,
    overlap=32,
    multiple=1,
    color="adain",
    shortest=64,
    footprint=SD21_FOOTPRINT,
)
_LORA_PARTS = (adapter_file.UNET_LORA, adapter_file.VAE_LORA, *adapter_file.NEW_CONV_IN)
_LORAS = All(HasSuffix(".lora_A.default_encoder.weight"), HasPrefix(UNET), HasPrefix(VAE))
_NETWORKS = All(Has(f"{WHOLE_UNET}conv_in.weight", f"{WHOLE_VAE}encoder.conv_in.weight"))


def read(family: LoraFamily, path: Path, partner: Path | None) -> OneStepLora:
    """Read either layout, or the single file. Raises UserError for a file that is incomplete."""
    file = read_weights(path)
    header = header_of(file)
    if adapter_file.is_single(header):
        has_lora = any(name.startswith(_LORA_PARTS[:2]) for name in file.tensors)
        parts = _LORA_PARTS if has_lora else adapter_file.WHOLE_NETWORKS
        return adapter_file.read(family, file, BASE, RECIPE.name, parts, TRAINED)
    if not _NETWORKS.missing(header):
        unet, vae = _parts(file, WHOLE_UNET, WHOLE_VAE)
        return OneStepLora(family, file.name, BASE, RECIPE.name, replaced=unet, replaced_vae=vae)
    unet, vae = _parts(file, UNET, VAE)
    replaced = {own: unet.pop(name) for name, own in REPLACED.items() if name in unet}
    if len(replaced) != len(REPLACED):
        missing = [name for name, own in REPLACED.items() if own not in replaced]
        raise UserError(f"{file.name} is incomplete (it lacks {shortened(missing)}): download it again.")
    in_unet, in_vae = peft_file.by_adapter(unet, file.name), peft_file.by_adapter(vae, file.name)
    lists, listed_in_vae = [f"unet_lora_{part}_modules" for part in PARTS], ["vae_lora_encoder_modules"]
    network = peft_file.joined(in_unet, [f"default_{part}" for part in PARTS], file, lists)
    encoder = peft_file.joined(in_vae, ["default_encoder"], file, listed_in_vae)
    adapters = (
        (Adapter("unet", network, trained=peft_file.unlisted(file, lists, TRAINED["unet"])),),
        (Adapter("vae", encoder, trained=peft_file.unlisted(file, listed_in_vae, TRAINED["vae"])),),
    )
    return OneStepLora(family, file.name, BASE, RECIPE.name, *adapters, replaced=replaced)


def _parts(file: WeightsFile, *prefixes: str) -> tuple[dict[str, Tensor], ...]:
    """The tensors under each prefix. Raises UserError for a tensor that has none of them."""
    others = sorted(name for name in file.tensors if not name.startswith(prefixes))
    if others:
        raise UserError(f"{file.name} has weights that OSEDiff does not have ({shortened(others)}): download it again.")
    return tuple(under(file.tensors, prefix) for prefix in prefixes)


def _summary(header: Header) -> str:
    ranks = adapter_file.ranks(header)
    return f"OSEDiff: U-Net and VAE encoder LoRA, rank {ranks}" if ranks else "OSEDiff: whole U-Net and VAE"


FAMILY = LoraFamily(
    name="osediff",
    title="OSEDiff",
    network="unet",
    licence="Apache-2.0; the base has its own",
    citation=RECIPE.citation,
    condition=AnyOf(_LORAS, _NETWORKS, adapter_file.condition("osediff")),
    recipes={RECIPE.name: RECIPE},
    summary=_summary,
    read=read,
    save=adapter_file.save,
    tagged_prompt="{tags}, {text},",
)
