"""The files of TSD-SR's LoRA and of LoRAs trained with this project: two files, or one that contains both.

Tensor names are diffusers' module names after a prefix. The single file is this project's own format: it contains both
LoRAs under their prefixes, optionally the encoded prompt, and metadata.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from safetensors.torch import save_file

from ..checkpoints import low_rank, prompt_embeddings
from ..checkpoints.conditions import All, AnyOf, Has, HasPrefix, Metadata, Not
from ..checkpoints.header import Header, header_of
from ..checkpoints.low_rank import Adapter, Update
from ..checkpoints.metadata import broken_description, read_json
from ..checkpoints.prompt_embeddings import POOLED_FILE, PROMPT_FILE, PromptEmbeddings
from ..checkpoints.weights_file import beside, read_weights
from ..errors import UserError
from ..files.whole import write_whole
from .bases import SD3_MEDIUM, SD35_MEDIUM, BaseKind, NetworkKind, unet_kind
from .family import LoraFamily, OneStepLora

VAE_FILE = "vae.safetensors"
OWN_VAE_PREFIX = "vae."
ENCODER_ENTRANCE = "encoder.conv_in"
METADATA_KEY = "onestep_sr_lora"
MSE_MARK = "mse"  # TSD-SR's published LoRA for evaluation is in the folder `tsdsr-mse`
DEFAULT, MSE = "tsd-sr", "tsd-sr-mse"  # recipe names for users and in single files


@dataclass(frozen=True)
class Layout:
    """The names in the files for one kind of network.

    `entrance` is the network's first module. It identifies the file: other LoRAs use the same prefixes, but do not
    change the first module. `trained` are the modules that training changes, as in `Adapter`.
    """

    network: NetworkKind
    vae_prefix: str
    entrance: str
    trained: str

    @property
    def prefix(self) -> str:
        return f"{self.network}."

    @property
    def files(self) -> tuple[str, str]:
        return f"{self.network}.safetensors", VAE_FILE

    @property
    def condition(self) -> AnyOf:
        network, vae = (
            Has(module + low_rank.DOWN) for module in (self.prefix + self.entrance, self.vae_prefix + ENCODER_ENTRANCE)
        )
        own = Metadata(METADATA_KEY)  # single files have the same VAE prefix for every base
        return AnyOf(network, All(vae, Not(own, "is a single file of another base")), All(own, HasPrefix(self.prefix)))


ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")
JOINT_ATTENTION = (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj")
CONVOLUTIONS = ("conv_in", "conv1", "conv2", "conv_shortcut", "conv", "conv_out")
TRANSFORMER = Layout(
    "transformer", "transformer.", "pos_embed.proj", low_rank.named(*JOINT_ATTENTION, "proj", "linear", "proj_out")
)
UNET = Layout(
    "unet",
    OWN_VAE_PREFIX,
    "conv_in",
    low_rank.named(*ATTENTION, *CONVOLUTIONS, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
)
VAE_TRAINED = rf"quant_conv|encoder\.{low_rank.named(*CONVOLUTIONS, *ATTENTION)}"
SECOND_ATTENTION = ".attn2."  # of SD3.5 medium alone
LAYOUTS = {layout.network: layout for layout in (TRANSFORMER, UNET)}


@dataclass(frozen=True)
class _Part:
    """The contents of one file: a LoRA for the network, for the VAE's encoder, or both."""

    name: str
    recipe: str
    network: Update = field(default_factory=dict)
    vae: Update = field(default_factory=dict)
    embeddings: PromptEmbeddings | None = None


def read(family: LoraFamily, path: Path, partner: Path | None, layout: Layout) -> OneStepLora:
    """Read a LoRA from one of its files. The second file is `partner`, or the one with the published name in the same
    folder.

    The encoded prompt is also read from that folder. Raises UserError for files that are missing or broken, and for
    two files for the same part.
    """
    part = _read_part(path, layout, family)
    if partner is None and not (part.network and part.vae):
        partner = beside(path, layout.files[1] if part.network else layout.files[0])
        if not partner.is_file():
            raise UserError(
                f"{part.name} is one part of a {family.title} LoRA, but {partner} does not exist: copy it there, or "
                "choose the second file."
            )
    if partner is not None:
        part = _joined(part, _read_part(partner, layout, family), layout)
    if part.embeddings is None and all(beside(path, name).is_file() for name in (PROMPT_FILE, POOLED_FILE)):
        part = replace(part, embeddings=prompt_embeddings.read_embeddings(path.parent))
    base = base_of(part.network, layout)
    # SD3's LoRAs also run on SD3.5 medium, whose second attention they do not change.
    trained = rf"(?!.*{re.escape(SECOND_ATTENTION)}){layout.trained}" if base == SD3_MEDIUM else layout.trained
    network = Adapter(layout.network, part.network, trained=trained)
    vae = Adapter("vae", part.vae, trained=VAE_TRAINED)
    return OneStepLora(family, part.name, base, part.recipe, (network,), (vae,), embeddings=part.embeddings)


def base_of(network: Update, layout: Layout) -> BaseKind:
    """The base that a LoRA was made for, from its modules and their widths."""
    if layout is TRANSFORMER:
        return SD35_MEDIUM if any(SECOND_ATTENTION in module for module in network) else SD3_MEDIUM
    widths = {layer.down.shape[1] for module, layer in network.items() if module.endswith("attn2.to_k")}
    return unet_kind(min(widths, default=0))


def _read_part(path: Path, layout: Layout, family: LoraFamily) -> _Part:
    file = read_weights(path)
    header = header_of(file)
    missing = layout.condition.missing(header)
    if missing:
        raise UserError(
            f"{file.name} is not part of a {family.title} LoRA (it {missing}): choose {' or '.join(layout.files)}, "
            "or a file from `onestep-sr convert`."
        )
    name, recipe = _name_and_recipe(header, layout)
    if METADATA_KEY in file.metadata:
        network, vae = (
            low_rank.parse(low_rank.under(file.tensors, prefix), file.name)
            for prefix in (layout.prefix, OWN_VAE_PREFIX)
        )
        embeddings = prompt_embeddings.from_file(file) if prompt_embeddings.has_embeddings(file) else None
        return _Part(name, recipe, network, vae, embeddings)
    is_network = any(key.startswith(layout.prefix + layout.entrance) for key in file.tensors)
    update = low_rank.parse(low_rank.under(file.tensors, layout.prefix if is_network else layout.vae_prefix), name)
    return _Part(name, recipe, network=update) if is_network else _Part(name, recipe, vae=update)


def _name_and_recipe(header: Header, layout: Layout) -> tuple[str, str]:
    """Published LoRAs all use the same file names, so the folder's name is part of the name and selects the recipe."""
    if METADATA_KEY not in header.metadata:
        name = f"{header.path.parent.name}/{header.name}" if header.name in layout.files else header.name
        return name, MSE if MSE_MARK in name.lower() else DEFAULT
    try:
        return header.name, str(read_json(header.metadata[METADATA_KEY], header.name)["method"])
    except (KeyError, TypeError) as error:
        raise broken_description(header.name, error) from error


def _joined(first: _Part, second: _Part, layout: Layout) -> _Part:
    if (first.network and second.network) or (first.vae and second.vae):
        part = "VAE encoder" if first.vae else PART_TITLES[layout.network]
        raise UserError(f"{first.name} and {second.name} are both for the {part}: choose one file for each part.")
    return replace(first, network=first.network or second.network, vae=first.vae or second.vae)


# The single file


def save(path: Path, lora: OneStepLora) -> None:
    """Write both LoRAs and the encoded prompt to one file. On an error, no partial file is left."""
    layout = LAYOUTS[lora.base.network]
    tensors = {}
    for prefix, adapters in ((layout.prefix, lora.network), (OWN_VAE_PREFIX, lora.vae)):
        for adapter in adapters:
            tensors |= low_rank.to_tensors(adapter.update, prefix)
    if lora.embeddings is not None:
        tensors |= prompt_embeddings.to_tensors(lora.embeddings)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    description = {"format": 1, "method": lora.recipe, "base": lora.base.title}
    write_whole(path, partial(save_file, tensors, metadata={METADATA_KEY: json.dumps(description)}))


# Descriptions


PART_TITLES = {"transformer": "transformer", "unet": "U-Net", "vae": "VAE encoder"}


def summary(header: Header, title: str, layout: Layout) -> str:
    """A short description of a file's contents."""
    ranks: dict[str, set[int]] = {layout.network: set(), "vae": set()}
    for key in (key for key in header.shapes if key.endswith(low_rank.DOWN)):
        is_vae = key.startswith((OWN_VAE_PREFIX, layout.vae_prefix + "encoder."))
        ranks["vae" if is_vae else layout.network].update(header.shapes[key][:1])
    held = [f"{PART_TITLES[part]} LoRA, {_ranks(found)}" for part, found in ranks.items() if found]
    held += ["prompt embeddings"] if prompt_embeddings.PROMPT_KEY in header.shapes else []
    return f"{title} ({_name_and_recipe(header, layout)[1]}): " + "; ".join(held)


def _ranks(found: set[int]) -> str:
    return f"rank {min(found)}" if len(found) == 1 else f"ranks {min(found)} to {max(found)}"
