"""TSD-SR's files: a LoRA for Stable Diffusion 3's transformer, one for its VAE's encoder, and prompt embeddings.

The published set is `transformer.safetensors` and `vae.safetensors`, which both carry the prefix
`transformer.`; the VAE's modules are known by `encoder.`. Module names are diffusers'. Our own form is one
safetensors file with the prefixes `transformer.` and `vae.`, the embeddings, and metadata.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from . import low_rank, prompt_embeddings
from .low_rank import Update
from .prompt_embeddings import PROMPT_FILE, PromptEmbeddings
from .weights_file import WeightsFile, read_weights, shortened

TRANSFORMER_FILE, VAE_FILE = "transformer.safetensors", "vae.safetensors"
TRANSFORMER_PREFIX, VAE_PREFIX = "transformer.", "vae."
ENCODER = "encoder."
METADATA_KEY = "onestep_sr_lora"
MSE_MARK = "mse"  # the published folder of the set for evaluation is `tsdsr-mse`

SD3_MEDIUM, SD35_MEDIUM = "Stable Diffusion 3 medium", "Stable Diffusion 3.5 medium"
SD35_WARNING = (
    f"This LoRA was trained on {SD3_MEDIUM}; on {SD35_MEDIUM} its result is untested and may be worse: "
    f"connect {SD3_MEDIUM} for the published quality."
)


@dataclass(frozen=True)
class TSDWeights:
    """What a set of files holds. `transformer` and `vae` are updates by diffusers' module names; either may be
    empty where only the other's file was read."""

    name: str
    recipe: str
    transformer: Update = field(default_factory=dict)
    vae: Update = field(default_factory=dict)
    embeddings: PromptEmbeddings | None = None


def is_tsd_sr(file: WeightsFile) -> bool:
    """Whether it is our single file, or a published one.

    Other LoRAs for SD3 share the prefix, but none of them changes the way into the networks.
    """
    entrances = {TRANSFORMER_PREFIX + module + low_rank.DOWN for module in ("pos_embed.proj", "encoder.conv_in")}
    return METADATA_KEY in file.metadata or bool(entrances & file.tensors.keys())


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
    if vae is None and not (first.transformer and first.vae):
        vae = path.with_name(VAE_FILE if first.transformer else TRANSFORMER_FILE)
        if not vae.is_file():
            raise UserError(f"{path.name} is half of TSD-SR, and {vae} is not there: copy it beside, or choose it.")
    return first if vae is None else _joined(first, read_file(vae))


def summary(weights: TSDWeights) -> str:
    """What a set holds, in a few words."""
    parts = {"transformer": weights.transformer, "VAE encoder": weights.vae}
    held = [f"{name} LoRA, {_ranks(update)}" for name, update in parts.items() if update]
    return f"TSD-SR ({weights.recipe}): " + "; ".join([*held, *(["prompt embeddings"] if weights.embeddings else [])])


def _ranks(update: Update) -> str:
    ranks = sorted({layer.rank for layer in update.values()})
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"


def _read_folder(folder: Path) -> TSDWeights:
    weights = read(folder / TRANSFORMER_FILE)
    if (folder / PROMPT_FILE).is_file():
        return replace(weights, embeddings=prompt_embeddings.read_embeddings(folder))
    return weights


def read_file(path: Path) -> TSDWeights:
    """One file by itself: our own with all parts, or a published one with one. Raises UserError for others."""
    file = read_weights(path)
    if not is_tsd_sr(file):
        raise UserError(
            f"{file.name} is no TSD-SR LoRA: choose the published {TRANSFORMER_FILE} with {VAE_FILE} beside it, "
            "or a file from `onestep-sr convert`."
        )
    name = f"{path.parent.name}/{file.name}" if file.name in (TRANSFORMER_FILE, VAE_FILE) else file.name
    recipe = "tsd-sr-mse" if MSE_MARK in name.lower() else "tsd-sr"
    if METADATA_KEY in file.metadata:
        return _from_own(file)
    update = low_rank.parse(_under(file.tensors, TRANSFORMER_PREFIX), file.name)
    is_vae = any(module.startswith(ENCODER) for module in update)
    return TSDWeights(name, recipe, vae=update) if is_vae else TSDWeights(name, recipe, transformer=update)


def _from_own(file: WeightsFile) -> TSDWeights:
    try:
        recipe = str(json.loads(file.metadata[METADATA_KEY])["method"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file.name} has a broken description ({error}): download it again.") from error
    return TSDWeights(
        file.name,
        recipe,
        low_rank.parse(_under(file.tensors, TRANSFORMER_PREFIX), file.name),
        low_rank.parse(_under(file.tensors, VAE_PREFIX), file.name),
        prompt_embeddings.from_file(file) if prompt_embeddings.has_embeddings(file) else None,
    )


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _joined(first: TSDWeights, second: TSDWeights) -> TSDWeights:
    if (first.transformer and second.transformer) or (first.vae and second.vae):
        part = "transformer" if first.transformer else "VAE encoder"
        raise UserError(f"{first.name} and {second.name} are both for the {part}: choose one file of each kind.")
    return TSDWeights(first.name, first.recipe, first.transformer or second.transformer, first.vae or second.vae)


def save(path: Path, weights: TSDWeights) -> None:
    """Write our single file; under a temporary name first, so a file is whole or absent."""
    tensors = low_rank.to_tensors(weights.transformer, TRANSFORMER_PREFIX)
    tensors |= low_rank.to_tensors(weights.vae, VAE_PREFIX)
    if weights.embeddings is not None:
        tensors |= prompt_embeddings.to_tensors(weights.embeddings)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    description = {"format": 1, "method": weights.recipe, "base": SD3_MEDIUM}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(tensors, temporary, metadata={METADATA_KEY: json.dumps(description)})
    os.replace(temporary, path)


def require_fit(update: Update, shapes: Mapping[str, tuple[int, ...]], name: str, target: str) -> None:
    """Raise UserError unless every module of the update is among the target's weights and takes its shape, and
    no transformer block is left out.

    `shapes` are the target's weight shapes by diffusers' module names, `target` what the user connected. A base
    with more outputs in a module than its update takes it on its first ones: in SD3.5-medium `norm1.linear`
    modulates a second attention after what it shares with SD3.
    """
    absent = sorted(update.keys() - shapes.keys())
    if absent:
        raise UserError(
            f"{name} is a TSD-SR LoRA for {SD3_MEDIUM}, but {target} lacks {len(absent)} of the modules that it "
            f"changes ({shortened(absent)}): connect {SD3_MEDIUM}."
        )
    if _blocks(update) != _blocks(shapes):
        raise UserError(
            f"{name} changes {len(_blocks(update))} transformer blocks, but {target} has {len(_blocks(shapes))}: "
            f"connect {SD3_MEDIUM}, or download the file again."
        )
    unfit = [module for module in update if not update[module].fits(_taken(shapes[module], update[module].rows))]
    if unfit:
        example = unfit[0]
        raise UserError(
            f"{name} is a TSD-SR LoRA for {SD3_MEDIUM}, but {len(unfit)} modules of {target} have other shapes "
            f"({example} has {shapes[example]}; the LoRA's halves are {tuple(update[example].down.shape)} and "
            f"{tuple(update[example].up.shape)}): connect {SD3_MEDIUM}."
        )


def _taken(shape: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """The part of a weight that an update of so many rows is for: all, or SD3's six of SD3.5's nine parts."""
    return (rows, *shape[1:]) if rows * 9 == shape[0] * 6 else shape


def _blocks(modules: Iterable[str]) -> set[str]:
    return {module.split(".")[1] for module in modules if module.startswith("transformer_blocks.")}


def original_vae_name(module: str) -> str:
    """The name that Stable Diffusion's own VAE (and ComfyUI's) has for a diffusers module of the encoder."""
    parts = module.split(".")
    match parts:
        case ["encoder", "down_blocks", level, "resnets", block, *rest]:
            return ".".join(["encoder", "down", level, "block", block, *_resnet(rest)])
        case ["encoder", "down_blocks", level, "downsamplers", "0", *rest]:
            return ".".join(["encoder", "down", level, "downsample", *rest])
        case ["encoder", "mid_block", "resnets", block, *rest]:
            return ".".join(["encoder", "mid", f"block_{int(block) + 1}", *_resnet(rest)])
        case ["encoder", "mid_block", "attentions", "0", *rest]:
            names = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
            return f"encoder.mid.attn_1.{names.get('.'.join(rest), '.'.join(rest))}"
    return module


def _resnet(rest: list[str]) -> list[str]:
    return ["nin_shortcut" if part == "conv_shortcut" else part for part in rest]
