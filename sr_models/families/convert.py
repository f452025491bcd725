"""Combine the files of a model or a LoRA, and the encoded prompt, into one safetensors file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..checkpoints.header import read_header
from ..checkpoints.prompt_embeddings import read_embeddings
from ..errors import UserError
from .family import ModelFamily
from .registry import FAMILIES, identify, read_lora


def convert(source: Path, output: Path, embeddings: Path | None = None) -> str:
    """Write the single file; returns a short description of its contents.

    Raises UserError as `read_lora` does, for LoRAs of other methods, and for an output that cannot be written.
    """
    if output.suffix.lower() != ".safetensors":
        raise UserError(f"{output} must end in .safetensors: choose another name.")
    if not output.parent.is_dir():
        raise UserError(f"{output.parent} is not a folder: create it first.")
    if source.is_dir() or not isinstance(family := identify(source), ModelFamily) or family.save is None:
        _convert_lora(source, output, embeddings)
    elif embeddings is not None:
        raise UserError(f"{family.title} needs no prompt: remove --embeddings.")
    else:
        family.save(output, read_header(source))
    header = read_header(output)
    return FAMILIES.identify(header).summary(header)


def _convert_lora(lora: Path, output: Path, embeddings: Path | None) -> None:
    read = read_lora(lora)
    save = read.family.save
    if save is None:
        raise UserError(f"{read.sentence}, which cannot be converted to one file: use its own files.")
    if embeddings is not None and read.base.network == "unet":
        raise UserError(f"{read.base} encodes the prompt with its own CLIP: remove --embeddings.")
    if embeddings is not None:
        read = replace(read, embeddings=read_embeddings(embeddings))
    save(output, read)
