"""Encoded prompts, which need no text encoder: TSD-SR's `prompt_embeds.pt` and `pool_embeds.pt`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from .weights_file import WeightsFile, beside, read_tensor, read_weights

PROMPT_FILE, POOLED_FILE = "prompt_embeds.pt", "pool_embeds.pt"
PROMPT_KEY, POOLED_KEY = "prompt_embeds", "pool_embeds"
POOLED_WIDTH = 2048


@dataclass(frozen=True)
class PromptEmbeddings:
    """An encoded prompt for a Stable Diffusion: `prompt` (1, tokens, width) and `pooled` (1, width).

    For Stable Diffusion 3, `prompt` is 4096 wide and `pooled` 2048. If the base uses no `pooled`, it is (1, 0).
    """

    prompt: Tensor
    pooled: Tensor


def read_embeddings(path: Path) -> PromptEmbeddings:
    """Read embeddings from a folder with both `.pt` files, from one of these files with the other beside it, or from a
    safetensors file that contains both under those names.

    Raises UserError if files are missing, or have another shape.
    """
    if path.is_dir() or path.suffix.lower() == ".pt":
        inside = path / PROMPT_FILE if path.is_dir() else path
        prompt, pooled = (read_tensor(beside(inside, name)) for name in (PROMPT_FILE, POOLED_FILE))
        return _checked(prompt, pooled, str(path))
    return from_file(read_weights(path))


def has_embeddings(file: WeightsFile) -> bool:
    return PROMPT_KEY in file.tensors and POOLED_KEY in file.tensors


def from_file(file: WeightsFile) -> PromptEmbeddings:
    """The embeddings in a file. Raises UserError if there are none, or if they have another shape."""
    if not has_embeddings(file):
        raise UserError(
            f"{file.name} contains no prompt embeddings: choose {PROMPT_FILE} with {POOLED_FILE} beside it, "
            f"or a safetensors file with {PROMPT_KEY} and {POOLED_KEY}."
        )
    return _checked(file.tensors[PROMPT_KEY], file.tensors[POOLED_KEY], file.name)


def to_tensors(embeddings: PromptEmbeddings) -> dict[str, Tensor]:
    return {PROMPT_KEY: embeddings.prompt, POOLED_KEY: embeddings.pooled}


def _checked(prompt: Tensor, pooled: Tensor, name: str) -> PromptEmbeddings:
    if prompt.ndim != 3 or len(prompt) != 1 or pooled.shape != (1, POOLED_WIDTH):
        raise UserError(
            f"{name} contains embeddings of shapes {tuple(prompt.shape)} and {tuple(pooled.shape)}, but "
            f"(1, tokens, 4096) and (1, {POOLED_WIDTH}) are needed: choose those published with TSD-SR."
        )
    if not (torch.isfinite(prompt).all() and torch.isfinite(pooled).all()):
        raise UserError(f"{name} contains values that are not finite: download it again.")
    return PromptEmbeddings(prompt, pooled)
