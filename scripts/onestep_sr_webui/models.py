"""List the models, and run one on a picture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image

from ...sr_models.checkpoints.prompt_embeddings import POOLED_FILE, PROMPT_FILE
from ...sr_models.checkpoints.weights_file import Stamp, file_stamps
from ...sr_models.core.forecast import workspace
from ...sr_models.core.options import UpscaleOptions
from ...sr_models.core.tile_policy import TilePolicy
from ...sr_models.diffusers_host.lora import open_lora
from ...sr_models.errors import UserError
from ...sr_models.families.bundled import BUNDLED
from ...sr_models.families.family import LoraFamily, OpenedModel
from ...sr_models.families.loading import load
from ...sr_models.families.registry import FAMILIES, files_with, identify, read_lora
from ...sr_models.files.picture import from_pillow, to_pillow
from ...sr_models.jobs.enlarge import enlarge
from . import host

TITLE = "One-Step SR"
BUNDLED_NAME = f"{TITLE} x4"
PARTS = (*FAMILIES.files_beside, PROMPT_FILE, POOLED_FILE)  # parts of a model, not listed as models
NETWORK = "transformer"  # LoRAs for a U-Net need a diffusers folder, which the host's list of checkpoints has not
WORKSPACE = 2**30  # bytes to free at least in addition to the weights


@dataclass(frozen=True)
class Choice:
    """A model's file. TSD-SR's LoRA also needs a checkpoint of Stable Diffusion 3; the others need none."""

    file: Path
    is_lora: bool = False
    checkpoint: Path | None = None


# Lists


def listed() -> dict[str, Choice]:
    """The available models, by the names that the host shows: the bundled one, those in the pack's model folders, and
    published sets of files in the host's LoRA folders. Of two with the same name, the first folder's is listed."""
    ours = {path: _inside(path, folder) for folder in reversed(host.model_folders()) for path in _models_in(folder)}
    loras = {path: family for path in ours if (family := _lora_family(path))}
    choices = {BUNDLED_NAME: Choice(BUNDLED)}
    choices |= {f"{TITLE}: {name}": Choice(path) for path, name in ours.items() if path not in loras}
    sets = (path for folder in reversed(host.lora_folders()) for path in host.weights_files(folder))
    loras |= {path: family for path in sets if (family := _set_of(path))}
    return choices | {
        f"{family.title}: {_set_name(path)}": Choice(path, is_lora=True)
        for path, family in loras.items()
        if family.network == NETWORK
    }


def choose(name: str, checkpoint: str | None) -> Choice:
    """The model with a name from the list, and the host's checkpoint for it if it needs one. Raises UserError."""
    choice = listed().get(name)
    if choice is None:
        raise UserError(f"{name} no longer exists: refresh the list and choose another model.")
    if not choice.is_lora:
        return choice
    path = host.checkpoint_path(checkpoint)
    if path is None:
        raise UserError(f"{name} needs Stable Diffusion 3: choose a checkpoint of it next to the model.")
    return replace(choice, checkpoint=path)


def _lora_family(path: Path) -> LoraFamily | None:
    try:
        family = identify(path)
    except UserError:
        return None  # so it is listed, and the error is shown when it is chosen
    return family if isinstance(family, LoraFamily) else None


def _set_of(path: Path) -> LoraFamily | None:
    """The family whose published set of several files begins with this one. Checks names only, because the host's
    folder may contain hundreds of other LoRAs."""
    for family in FAMILIES.loras:
        if len(family.files) > 1 and path.name == family.files[0]:
            return family if all(path.with_name(name).is_file() for name in family.files) else None
    return None


def _models_in(folder: Path) -> list[Path]:
    parts = {*PARTS, *(name for family in FAMILIES.loras for name in family.files[1:])}
    return [path for path in host.weights_files(folder) if path.name not in parts]


def _inside(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _set_name(lora: Path) -> str:
    """The folder's name for published files, which have the same names in every LoRA; else the file's name."""
    is_published = any(lora.name in family.files[:1] for family in FAMILIES.loras)
    return lora.parent.name if is_published else lora.stem


# Upscaling


def upscale(choice: Choice, image: Image.Image, options: UpscaleOptions) -> Image.Image | None:
    """The upscaled picture, RGB or RGBA; None if the user interrupted. Raises UserError as the core does."""
    if host.is_interrupted():
        return None
    with host.plain_torch():
        opened = _open(choice, host.compute_dtype(), host.budget(), file_stamps(_files(choice)))
        beside = max(WORKSPACE, workspace(opened.model, (image.height, image.width), options))
        try:
            with host.counted_when_done(), host.room_for(opened.size + beside), opened.on_device(host.device()):
                policy = _tile_policy(choice, host.task())
                reports = host.tile_progress(), host.warn, policy, host.stage_progress()
                return to_pillow(enlarge(opened.model, from_pillow(image), options, *reports))
        except host.Interrupted:
            return None


@lru_cache(maxsize=1)
def _tile_policy(choice: Choice, task: str) -> TilePolicy:
    """One policy for all pictures of a batch, so that later ones keep the memory limits of earlier ones."""
    return TilePolicy()


@lru_cache(maxsize=1)
def _open(choice: Choice, dtype: torch.dtype, budget: int | None, stamps: tuple[Stamp, ...]) -> OpenedModel:
    """Open a model. The last one is kept for the next picture of a batch, and read again if a file was replaced."""
    _open.cache_clear()  # before loading, because two models may not fit into memory
    opened = _loaded(choice, dtype, budget)
    licence = [opened.family.licence_notice] if opened.family.is_non_commercial else []
    host.warn(" ".join([*licence, *opened.warnings]))
    return opened


def _loaded(choice: Choice, dtype: torch.dtype, budget: int | None) -> OpenedModel:
    if choice.checkpoint is None:
        return load(choice.file, dtype=dtype, budget=budget)
    return open_lora(
        choice.checkpoint,
        choice.file,
        embeddings=None if read_lora(choice.file).embeddings else _embeddings(),
        dtype=dtype,
        device=host.device(),
        offload=True,
        budget=budget,
    )


def _files(choice: Choice) -> list[Path]:
    """All files that the model may be read from, whether they exist or not."""
    beside = [*(choice.file.with_name(name) for name in sorted(PARTS)), *files_with(choice.file)]
    if choice.checkpoint is None:
        return [choice.file, *beside]
    return [choice.file, *beside, choice.checkpoint, *_embedding_files()]


def _embedding_files() -> list[Path]:
    files = [path for folder in host.model_folders() for path in host.weights_files(folder)]
    return [path for path in files if path.name in (PROMPT_FILE, POOLED_FILE)]


def _embeddings() -> Path:
    found = [path for path in _embedding_files() if path.name == PROMPT_FILE]
    if not found:
        raise UserError(f"TSD-SR's prompt is missing: copy {PROMPT_FILE} and {POOLED_FILE} to {host.MODEL_FOLDER}.")
    return found[0]
