"""Which model to run, as plain settings that can travel to another machine, and opening it there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.devices import default_dtype, find_device
from ..core.model import SRModel
from ..diffusers_host.sd3 import load_sd3
from ..diffusers_host.unet import load_unet
from ..diffusers_host.unet_files import is_unet
from ..errors import UserError
from ..families.bundled import BUNDLED
from ..families.loading import load

BUNDLED_NAME = "bundled"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class ModelChoice:
    """What the command line was told; see its help. `auto` and None leave the choice to what opens it."""

    model: str = BUNDLED_NAME
    autoencoder: Path | None = None
    recipe: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    base: Path | None = None
    lora: Path | None = None
    embeddings: Path | None = None
    prompt: str | None = None
    offload: bool = False


def open_model(choice: ModelChoice) -> tuple[SRModel, str]:
    """The model on its device, and a warning or an empty text. Raises UserError as the loaders do."""
    place = find_device(choice.device)
    dtype = default_dtype(place) if choice.dtype == "auto" else DTYPES[choice.dtype]
    recipe = None if choice.recipe == "auto" else choice.recipe
    if choice.base is not None or choice.lora is not None:
        return _open_stable_diffusion(choice, recipe, place, dtype)
    path = BUNDLED if choice.model == BUNDLED_NAME else Path(choice.model)
    loaded = load(path, autoencoder=choice.autoencoder, recipe=recipe, dtype=dtype)
    for module in loaded.modules:
        module.to(place)
    return loaded.model, ""


def _open_stable_diffusion(
    choice: ModelChoice, recipe: str | None, place: torch.device, dtype: torch.dtype
) -> tuple[SRModel, str]:
    if choice.base is None or choice.lora is None:
        raise UserError("A LoRA needs both --base (Stable Diffusion 3 medium for TSD-SR's) and --lora: give both.")
    if not choice.base.exists():
        raise UserError(f"{choice.base} is not there: check the name of the base.")
    options: dict[str, Any] = {"prompt": choice.prompt, "recipe": recipe, "dtype": dtype}
    options |= {"device": place, "offload": choice.offload}
    if not is_unet(choice.base):
        loaded = load_sd3(choice.base, choice.lora, embeddings=choice.embeddings, **options)
    elif choice.embeddings is None:
        loaded = load_unet(choice.base, choice.lora, **options)
    else:
        raise UserError(f"{choice.base.name} has text encoders of its own for the prompt: leave --embeddings out.")
    return loaded.model, loaded.warning
