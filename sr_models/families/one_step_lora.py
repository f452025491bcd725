"""TSD-SR's files: a LoRA for Stable Diffusion 3's transformer, one for its VAE's encoder, and prompt embeddings.

The published set is `transformer.safetensors` and `vae.safetensors`, which both carry the prefix
`transformer.`; the VAE's modules are known by `encoder.`. Module names are diffusers'. What is trained here on a
Stable Diffusion with a U-Net has `unet.safetensors` in place of the first, with the prefixes `unet.` and `vae.`.
Our own form is one safetensors file with the prefixes of both, the embeddings, and metadata.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import Tensor

from ..checkpoints import low_rank, prompt_embeddings
from ..checkpoints.low_rank import Update
from ..checkpoints.metadata import broken_description, read_json
from ..checkpoints.prompt_embeddings import PROMPT_FILE, PromptEmbeddings
from ..checkpoints.weights_file import WeightsFile, read_weights
from ..core.process import Process, flow_level
from ..core.recipe import Recipe
from ..core.step import OneStep
from ..errors import UserError

if TYPE_CHECKING:
    pass

TRANSFORMER_FILE, UNET_FILE, VAE_FILE = "transformer.safetensors", "unet.safetensors", "vae.safetensors"
TRANSFORMER_PREFIX, UNET_PREFIX, VAE_PREFIX = "transformer.", "unet.", "vae."
ENCODER = "encoder."
ENTRANCES = ("transformer.pos_embed.proj", "transformer.encoder.conv_in", "unet.conv_in", "vae.encoder.conv_in")
METADATA_KEY = "onestep_sr_lora"
MSE_MARK = "mse"  # the published folder of the set for evaluation is `tsdsr-mse`

SD3_MEDIUM, SD35_MEDIUM = "Stable Diffusion 3 medium", "Stable Diffusion 3.5 medium"
UNET_BASES = {768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2.1", 2048: "SDXL"}  # by the prompt's width
SD35_WARNING = (
    f"This LoRA was trained on {SD3_MEDIUM}; on {SD35_MEDIUM} its result is untested and may be worse: "
    f"connect {SD3_MEDIUM} for the published quality."
)

# The spelling is the published one.
TSD_PROMPT = (
    "Cinematic, High Contrast, highly detailed, taken using a Canon EOS R camera, hyper detailed photo - realistic "
    "maximum detail, 32k, Color Grading, ultra HD, extrememeticulous detailing, skin pore detailing, hyper sharpness, "
    "perfect without deformations."
)
TSD_SR = Recipe(
    "tsd-sr",
    "TSD-SR on Stable Diffusion 3",
    "arXiv 2411.18263",
    OneStep(1000.0, level=flow_level(1000.0)),
    scale=1,
    tile=64,
    overlap=8,
    multiple=2,
    color="wavelet",
    largest_tile=384,  # SD3's position table has 192 patches of two a side
    shortest=64,
    prompt=TSD_PROMPT,
)
TSD_FAMILY = {recipe.name: recipe for recipe in (TSD_SR, replace(TSD_SR, name="tsd-sr-mse", color="adain"))}


def on_unet(recipe: Recipe, process: Process) -> Recipe:
    """TSD-SR's recipe for a Stable Diffusion with a U-Net, which may take windows of any size: the LR's latent is
    taken for the process's noisiest input."""
    step = OneStep(999.0).on(process)
    return replace(recipe, name=f"{recipe.name} on a U-Net", title="TSD-SR on a U-Net", step=step, largest_tile=0)


def choose_recipe(name: str) -> Recipe:
    """Of TSD-SR's, by name. Raises UserError for others."""
    if name not in TSD_FAMILY:
        raise UserError(f"Recipe {name!r} is unknown for TSD-SR: choose one of {', '.join(TSD_FAMILY)}.")
    return TSD_FAMILY[name]


@dataclass(frozen=True)
class TSDWeights:
    """What a set of files holds. `transformer` or `unet`, and `vae`, are updates by diffusers' module names; either
    may be empty where only the other's file was read."""

    name: str
    recipe: str
    transformer: Update = field(default_factory=dict)
    unet: Update = field(default_factory=dict)
    vae: Update = field(default_factory=dict)
    embeddings: PromptEmbeddings | None = None

    @property
    def network(self) -> Update:
        """The transformer's or the U-Net's."""
        return self.transformer or self.unet

    @property
    def base(self) -> str:
        """What it was made for, by name."""
        if not self.unet:  # SD3.5 medium alone has a second attention
            return SD35_MEDIUM if any(".attn2." in module for module in self.transformer) else SD3_MEDIUM
        widths = {layer.down.shape[1] for module, layer in self.unet.items() if module.endswith("attn2.to_k")}
        return UNET_BASES.get(min(widths, default=0), "a Stable Diffusion with a U-Net")


def is_tsd_sr(file: WeightsFile) -> bool:
    """Whether it is our single file, or a published one.

    Other LoRAs share the prefixes, but none of them changes the way into the networks.
    """
    return METADATA_KEY in file.metadata or bool({module + low_rank.DOWN for module in ENTRANCES} & file.tensors.keys())


def read(path: Path, vae: Path | None = None) -> TSDWeights:
    """Read a set.

    Args:
        path: a folder with both files (and perhaps the embeddings), our single file, or one published file;
            the other one is looked for beside it.
        vae: the other file, where it is not beside the first under its published name.

    Raises UserError for files that are missing, broken or no TSD-SR files, and for two files of one kind.
    """
    if path.is_dir():
        return _read_folder(path)
    first = read_file(path)
    if vae is None and not (first.network and first.vae):
        vae = path.with_name(VAE_FILE) if first.network else _network_file(path.parent)
        if not vae.is_file():
            raise UserError(f"{path.name} is half of TSD-SR, and {vae} is not there: copy it beside, or choose it.")
    return first if vae is None else _joined(first, read_file(vae))


def summary(weights: TSDWeights) -> str:
    """What a set holds, in a few words."""
    parts = {"transformer": weights.transformer, "U-Net": weights.unet, "VAE encoder": weights.vae}
    held = [f"{name} LoRA, {_ranks(update)}" for name, update in parts.items() if update]
    return f"TSD-SR ({weights.recipe}): " + "; ".join([*held, *(["prompt embeddings"] if weights.embeddings else [])])


def _ranks(update: Update) -> str:
    ranks = sorted({layer.rank for layer in update.values()})
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"


def _network_file(folder: Path) -> Path:
    found = [folder / name for name in (TRANSFORMER_FILE, UNET_FILE) if (folder / name).is_file()]
    if len(found) > 1:
        raise UserError(f"{folder} holds LoRAs for two kinds of base: put each into a folder of its own.")
    if not found:
        raise UserError(f"{folder} lacks {TRANSFORMER_FILE} (or {UNET_FILE}): name the LoRA's folder.")
    return found[0]


def _read_folder(folder: Path) -> TSDWeights:
    weights = read(_network_file(folder))
    if (folder / PROMPT_FILE).is_file():
        return replace(weights, embeddings=prompt_embeddings.read_embeddings(folder))
    return weights


def read_file(path: Path) -> TSDWeights:
    """One file by itself: our own with all parts, or a published one with one. Raises UserError for others."""
    file = read_weights(path)
    if not is_tsd_sr(file):
        raise UserError(
            f"{file.name} is no TSD-SR LoRA: choose the published {TRANSFORMER_FILE} with {VAE_FILE} beside it, your "
            f"own one or {UNET_FILE}, or a file from `onestep-sr convert`."
        )
    published = file.name in (TRANSFORMER_FILE, UNET_FILE, VAE_FILE)
    name = f"{path.parent.name}/{file.name}" if published else file.name
    recipe = "tsd-sr-mse" if MSE_MARK in name.lower() else "tsd-sr"
    if METADATA_KEY in file.metadata:
        return _from_own(file)
    prefix = next(
        p for p in (TRANSFORMER_PREFIX, UNET_PREFIX, VAE_PREFIX) if any(k.startswith(p) for k in file.tensors)
    )
    update = low_rank.parse(_under(file.tensors, prefix), file.name)
    if any(module.startswith(ENCODER) for module in update):
        return TSDWeights(name, recipe, vae=update)
    if prefix == UNET_PREFIX:
        return TSDWeights(name, recipe, unet=update)
    return TSDWeights(name, recipe, transformer=update)


def _from_own(file: WeightsFile) -> TSDWeights:
    try:
        recipe = str(read_json(file.metadata[METADATA_KEY], file.name)["method"])
    except (KeyError, TypeError) as error:
        raise broken_description(file.name, error) from error
    transformer, unet, vae = (
        low_rank.parse(_under(file.tensors, prefix), file.name)
        for prefix in (TRANSFORMER_PREFIX, UNET_PREFIX, VAE_PREFIX)
    )
    embeddings = prompt_embeddings.from_file(file) if prompt_embeddings.has_embeddings(file) else None
    return TSDWeights(file.name, recipe, transformer, unet, vae, embeddings)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _joined(first: TSDWeights, second: TSDWeights) -> TSDWeights:
    if (first.network and second.network) or (first.vae and second.vae):
        part = "VAE encoder" if first.vae else "transformer" if first.transformer else "U-Net"
        raise UserError(f"{first.name} and {second.name} are both for the {part}: choose one file of each kind.")
    return replace(
        first,
        transformer=first.transformer or second.transformer,
        unet=first.unet or second.unet,
        vae=first.vae or second.vae,
    )


def save(path: Path, weights: TSDWeights) -> None:
    """Write our single file; under a temporary name first, so a file is whole or absent."""
    tensors = low_rank.to_tensors(weights.transformer, TRANSFORMER_PREFIX)
    tensors |= low_rank.to_tensors(weights.unet, UNET_PREFIX) | low_rank.to_tensors(weights.vae, VAE_PREFIX)
    if weights.embeddings is not None:
        tensors |= prompt_embeddings.to_tensors(weights.embeddings)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    description = {"format": 1, "method": weights.recipe, "base": weights.base}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(tensors, temporary, metadata={METADATA_KEY: json.dumps(description)})
    os.replace(temporary, path)
