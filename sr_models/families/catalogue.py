"""Readable lists of the available models and of the weights files in a folder."""

from __future__ import annotations

from pathlib import Path

from ..checkpoints.header import read_header
from ..checkpoints.weights_file import SUFFIXES
from ..errors import UserError
from .family import LoraFamily
from .registry import FAMILIES


def recipes() -> list[str]:
    """One line for the bundled model and one per recipe. A recipe's line describes the first method that has it."""
    lines = {"bundled": "this project's small x4 model, no download needed"}
    for family in FAMILIES:
        how = "with --base and --lora" if isinstance(family, LoraFamily) else "from a published file"
        for name, recipe in family.recipes.items():
            scale = f"x{recipe.scale}" if recipe.scale > 1 else "any scale"
            lines.setdefault(name, f"{recipe.title}, {scale}, {how} ({recipe.citation})")
    return [f"{name:12} {line}" for name, line in lines.items()]


def files_in(folder: Path) -> list[str]:
    """One line per weights file. Raises UserError if `folder` is not a folder."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: choose a folder that contains weights files.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (*SUFFIXES, ".gguf"))
    lines = {file.name: describe(file) for file in files}
    return [line if line.startswith(name) else f"{name}: {line}" for name, line in lines.items()]


def describe(path: Path) -> str:
    """A short description of a weights file, or why it cannot be used."""
    try:
        header = read_header(path)
        return FAMILIES.identify(header).summary(header)
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror}): check its permissions."
