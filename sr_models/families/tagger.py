"""RAM with DAPE (arXiv 2306.03514, 2311.16518): the tagger that TAD-SeeSR, OSEDiff and GDPO-SR were trained with.

It needs RAM's weights, DAPE's LoRA on them, and the names of the tags, which no weights file holds: SeeSR's repository
has them as text files, a tag or a threshold a line. All files are in one folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints.weights_file import WeightsFile, beside, fill, read_weights, shortened
from ..errors import UserError
from ..networks.ram import RAM, RAMConfig

RAM_FILE, LORA_FILE = "ram_swin_large_14m.pth", "DAPE.pth"
TAGS_FILE, THRESHOLDS_FILE = "ram_tag_list.txt", "ram_tag_list_threshold.txt"
LICENCE_NOTICE = "Licence of RAM and DAPE: Apache-2.0."
THRESHOLD = 0.68  # of tags without one of their own
SWIN, HEAD = "visual_encoder.layers.", "tagging_head.encoder.layer."
TABLE, DOWN, UP = ".attn.relative_position_bias_table", ".lora_A", ".lora_B"
NEEDED = (
    *("visual_encoder.patch_embed.proj.weight", "image_proj.weight", "label_embed", "wordvec_proj.weight"),
    *(f"{SWIN}0.blocks.0{TABLE}", f"{HEAD}0.intermediate.dense.weight"),
)


@dataclass(frozen=True)
class Tagger:
    """RAM, and the names and thresholds of its tags; `names` is empty if their file is missing."""

    network: RAM
    names: tuple[str, ...]
    thresholds: Tensor

    @torch.no_grad()
    def embedding(self, picture: Tensor, mode: str = "bilinear") -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 145, 512) float32, on the picture's device; `mode` as in `RAM.embed`."""
        weight = self.network.image_proj.weight
        return self.network.embed(picture.to(weight), mode).to(picture)

    def second_look(self, picture: Tensor) -> Tensor:
        """`embedding` of a picture with a result in it, which TAD-SeeSR's further steps resize bicubically."""
        return self.embedding(picture, "bicubic")

    @torch.no_grad()
    def tags(self, embedding: Tensor) -> list[str]:
        """The tags of each picture, joined with ", ", from its embedding. Raises UserError if the names are missing."""
        if not self.names:
            raise UserError(
                f"The tags have no names without {TAGS_FILE}: copy it from SeeSR's repository (ram/data) to the folder "
                f"of {RAM_FILE}."
            )
        chances = self.network.probabilities(embedding.to(self.network.image_proj.weight))
        chosen = chances.float().cpu() > self.thresholds
        return [", ".join(self.names[number] for number in row.nonzero()[:, 0].tolist()) for row in chosen]


def read_tagger(path: Path, dtype: torch.dtype = torch.float32) -> Tagger:
    """Read RAM's file, or the folder that has it under its published name, and the other files beside it.

    Raises UserError for files that are missing, broken or of another kind.
    """
    path = beside(path / RAM_FILE, RAM_FILE) if path.is_dir() else path
    file = read_weights(path)
    # Some files have an earlier name of the tag head. Texts and captions have networks of their own in the file.
    tensors = {name.replace("vision_multi.", "tagging_head."): tensor for name, tensor in file.tensors.items()}
    missing = [name for name in NEEDED if name not in tensors]
    if missing:
        raise UserError(f"{path.name} is not RAM with a Swin (it lacks {shortened(missing)}): choose {RAM_FILE}.")
    lora = beside(path, LORA_FILE)
    if not lora.is_file():
        raise UserError(f"RAM needs {LORA_FILE}, which is not next to {path.name}: copy it to {path.parent}.")
    config = config_of({name: tuple(tensor.shape) for name, tensor in tensors.items()}, path.name)
    with torch.device("meta"):
        network = RAM(config)
    tensors = {name: tensor for name, tensor in tensors.items() if name in network.state_dict()}
    tensors = with_dape(tensors, read_weights(lora))
    fill(network, replace(file, tensors=tensors), "RAM", dtype)
    names, thresholds = (_lines(beside(path, name), config.tags) for name in (TAGS_FILE, THRESHOLDS_FILE))
    return Tagger(network, names, _thresholds(thresholds or (str(THRESHOLD),) * config.tags))


def config_of(shapes: Mapping[str, tuple[int, ...]], name: str) -> RAMConfig:
    """The sizes of a network with these shapes. Raises UserError for shapes that do not belong together."""
    tables = [key for key in shapes if key.startswith(SWIN) and key.endswith(TABLE)]
    levels = [[key for key in tables if key.startswith(f"{SWIN}{level}.")] for level in range(len(tables))]
    levels = [level for level in levels if level]
    rows, channels = shapes[levels[0][0]][0], shapes[NEEDED[0]][0]
    heads = tuple(shapes[level[0]][-1] for level in levels)
    if isqrt(rows) ** 2 != rows or any(channels * 2**level % max(1, count) for level, count in enumerate(heads)):
        raise UserError(f"{name} is broken (its attention has shapes that do not fit): download it again.")
    return RAMConfig(
        channels,
        tuple(len(level) for level in levels),
        heads,
        window=(isqrt(rows) + 1) // 2,
        embedding=shapes["image_proj.weight"][0],
        hidden=shapes["wordvec_proj.weight"][0],
        intermediate=shapes[NEEDED[-1]][0],
        tag_layers=len([key for key in shapes if key.startswith(HEAD) and key.endswith(".intermediate.dense.weight")]),
        tags=shapes["label_embed"][0],
    )


def with_dape(tensors: Mapping[str, Tensor], file: WeightsFile) -> dict[str, Tensor]:
    """RAM's weights with DAPE's LoRA added: W + B A / r, on the queries and values of the Swin, and on the queries and
    keys of the tag head. Raises UserError if it lacks one of them, or does not fit."""
    modules = sorted(
        name.removesuffix(".weight") for name in tensors if name.endswith((".qkv.weight", ".query.weight"))
    )
    modules += [name.replace(".query", ".key") for name in modules if name.endswith(".query")]
    missing = [name + end for name in modules for end in (DOWN, UP) if name + end not in file.tensors]
    if missing:
        raise UserError(f"{file.name} is not DAPE's (it lacks {shortened(missing)}): choose {LORA_FILE}.")
    merged = dict(tensors)
    for module in modules:
        weight, down, up = tensors[f"{module}.weight"], file.tensors[module + DOWN], file.tensors[module + UP]
        try:
            merged[f"{module}.weight"] = weight + _delta(down.float(), up.float(), parts=module.endswith(".qkv"))
        except RuntimeError as error:
            raise UserError(f"{file.name} does not fit RAM's file (at {module}): choose {LORA_FILE}.") from error
    return merged


def _delta(down: Tensor, up: Tensor, *, parts: bool) -> Tensor:
    """B A / r; `parts`: one for queries and one for values, of a projection that gives keys too."""
    rank = up.shape[1]
    if not parts:
        return up @ down / rank
    query, value = (b @ a / rank for a, b in zip(down.split(rank), up.chunk(2), strict=True))
    return torch.cat([query, torch.zeros_like(query), value])


def _lines(path: Path, count: int) -> tuple[str, ...]:
    """The lines of a text file with one per tag; none if it is missing. Raises UserError for another number."""
    if not path.is_file():
        return ()
    try:
        lines = tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}): copy it again.") from error
    if len(lines) != count:
        raise UserError(f"{path.name} has {len(lines)} lines, but RAM has {count} tags: copy it again.")
    return lines


def _thresholds(lines: tuple[str, ...]) -> Tensor:
    try:
        return torch.tensor([float(line) for line in lines])
    except ValueError as error:
        raise UserError(f"{THRESHOLDS_FILE} has a line that is not a number ({error}): copy it again.") from error
