"""Combine two LoRA files and the encoded prompt into one file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..checkpoints.header import read_header
from ..checkpoints.prompt_embeddings import read_embeddings
from ..errors import UserError
from . import lora_files
from .registry import FAMILIES, read_lora


def convert(lora: Path, output: Path, embeddings: Path | None = None) -> str:
    """Write the single file; returns a short description of its contents.

    Raises UserError as `read_lora` does, for LoRAs of other methods, and for an output that cannot be written.
    """
    if output.suffix.lower() != ".safetensors":
        raise UserError(f"{output} must end in .safetensors: choose another name.")
    if not output.parent.is_dir():
        raise UserError(f"{output.parent} is not a folder: create it first.")
    read = read_lora(lora)
    if read.recipe not in (lora_files.DEFAULT, lora_files.MSE):
        raise UserError(f"{read.sentence}, which cannot be converted to one file: use its own files.")
    if embeddings is not None and read.base.network == "unet":
        raise UserError(f"{read.base} encodes the prompt with its own CLIP: remove --embeddings.")
    if embeddings is not None:
        read = replace(read, embeddings=read_embeddings(embeddings))
    lora_files.save(output, read)
    header = read_header(output)
    return FAMILIES.identify(header).summary(header)
