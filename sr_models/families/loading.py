"""From a weights file to an SR model, for methods that open by themselves."""

from __future__ import annotations

from pathlib import Path

import torch

from ..checkpoints.header import read_header
from ..core.recipe import Recipe
from .bundled import BUNDLED
from .family import OpenedModel, OpenOptions
from .registry import require_model


def load(
    path: Path | str = BUNDLED,
    *,
    autoencoder: Path | None = None,
    recipe: str | None = None,
    dtype: torch.dtype = torch.float32,
    budget: int | None = None,
) -> OpenedModel:
    """Read an SR model onto the CPU; `load().model` is what `upscale` takes.

    Args:
        path: our own safetensors file (the bundled model by default), or a published TAD-SR, SinSR or
            ResShift x4 file.
        autoencoder: the VQ-f4 autoencoder of a published file; None looks for `autoencoder_vq_f4.pth`
            beside it. Our own files need none.
        recipe: for published files, in place of the recipe that belongs to the file's name.
        dtype: of the weights and the computation.
        budget: of the autoencoder, as `AutoencoderCodec` takes it.

    Raises:
        UserError: for a file that is missing, broken, of an unknown kind or incomplete.
    """
    header = read_header(Path(path))
    return require_model(header).open(header, OpenOptions(autoencoder, recipe, dtype, budget))


def recipe_of(path: Path, recipe: str | None = None) -> tuple[Recipe, int]:
    """The recipe that `load` would give a file, and its codec's factor, without reading weights.

    Raises UserError as `load` does for files that cannot be opened.
    """
    header = read_header(path)
    return require_model(header).outline(header, recipe)
