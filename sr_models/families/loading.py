"""Load an SR model from a weights file, for methods that are complete models."""

from __future__ import annotations

from pathlib import Path

import torch

from ..checkpoints.header import read_header
from ..core.recipe import Recipe
from ..errors import UserError
from .bundled import BUNDLED
from .family import Family, OpenedModel, OpenOptions
from .registry import require_model

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def load(
    path: Path | str = BUNDLED,
    *,
    autoencoder: Path | None = None,
    recipe: str | None = None,
    dtype: torch.dtype = torch.float32,
    budget: int | None = None,
    spill: Path | None = None,
) -> OpenedModel:
    """Read an SR model onto the CPU, to pass to `upscale`.

    Args:
        path: this project's own safetensors file (the bundled model by default), or a published file of TAD-SR,
            TAD-faceir, SinSR, ResShift or AdcSR.
        autoencoder: the autoencoder of a published file; None looks in the same folder for the one with its published
            name. This project's own files need none.
        recipe: the recipe of a published file; None detects it from the file name.
        dtype: precision of the weights and the computation: float32, float16 or bfloat16.
        budget, spill: the autoencoder's memory budget, and the folder for what exceeds it, as in `AutoencoderCodec`.

    Raises:
        UserError: if the file is missing, broken, incomplete or of an unknown kind, for another dtype, and for an
            autoencoder or a recipe that does not apply to the file.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not possible: choose {', '.join(map(str, DTYPES))}.")
    header = read_header(Path(path))
    family = require_model(header)
    if not family.recipes:
        _require_own(family, autoencoder, recipe)
    return family.open(header, OpenOptions(autoencoder, recipe, dtype, budget, spill))


def _require_own(family: Family, autoencoder: Path | None, recipe: str | None) -> None:
    """Raise UserError for what a file that is complete in itself does not take."""
    if recipe is not None:
        family.recipe(recipe)
    if autoencoder is not None:
        raise UserError(f"{family.title} models need no autoencoder: leave {str(autoencoder)!r} out.")


def recipe_of(path: Path, recipe: str | None = None) -> tuple[Recipe, int]:
    """The recipe that `load` uses for a file, and its codec's factor, without reading weights.

    Raises UserError as `load` does.
    """
    header = read_header(path)
    return require_model(header).outline(header, recipe)
