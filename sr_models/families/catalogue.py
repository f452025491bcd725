"""What can run, and what the files in a folder are, in lines for people."""

from __future__ import annotations

from pathlib import Path

from ..checkpoints.header import read_header
from ..checkpoints.weights_file import SUFFIXES
from ..errors import UserError
from .family import LoraFamily
from .registry import FAMILIES


def recipes() -> list[str]:
    """A line for the bundled model, and one for each recipe that can be chosen, under the first method that has it."""
    lines = {"bundled": "the small x4 model of this project, nothing to download"}
    for family in FAMILIES:
        how = "with --base and --lora" if isinstance(family, LoraFamily) else "from a published file"
        for name, recipe in family.recipes.items():
            scale = f"x{recipe.scale}" if recipe.scale > 1 else "any scale"
            lines.setdefault(name, f"{recipe.title}, {scale}, {how} ({recipe.citation})")
    return [f"{name:12} {line}" for name, line in lines.items()]


def files_in(folder: Path) -> list[str]:
    """A line for each weights file. Raises UserError for anything but a folder."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: choose a folder that contains weights files.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (*SUFFIXES, ".gguf"))
    lines = {file.name: describe(file) for file in files}
    return [line if line.startswith(name) else f"{name}: {line}" for name, line in lines.items()]


def describe(path: Path) -> str:
    """What a weights file is, in a few words, or why it cannot run."""
    try:
        header = read_header(path)
        return FAMILIES.identify(header).summary(header)
    except UserError as error:
        return str(error)
