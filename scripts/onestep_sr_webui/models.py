"""Which models there are, and running one on a picture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from ...sr_models.checkpoints.prompt_embeddings import POOLED_FILE, PROMPT_FILE
from ...sr_models.checkpoints.weights_file import read_weights
from ...sr_models.core.model import SRModel
from ...sr_models.core.options import UpscaleOptions
from ...sr_models.core.tile_policy import TilePolicy
from ...sr_models.diffusers_host.sd3 import load_sd3
from ...sr_models.errors import UserError
from ...sr_models.families import one_step_lora
from ...sr_models.families.bundled import BUNDLED
from ...sr_models.families.loading import load
from ...sr_models.families.one_step_lora import TRANSFORMER_FILE, VAE_FILE
from ...sr_models.families.resshift import AUTOENCODER_NAME
from ...sr_models.files.picture import from_pillow, to_pillow
from ...sr_models.jobs.run import enlarge
from . import host

TITLE = "One-Step SR"
BUNDLED_NAME = f"{TITLE} x4"
PARTS = (AUTOENCODER_NAME, VAE_FILE, PROMPT_FILE, POOLED_FILE)  # of a model, none by themselves
WORKSPACE = 2**30  # bytes, beside the weights


@dataclass(frozen=True)
class Choice:
    """A model by its file. TSD-SR's LoRA works on a checkpoint of Stable Diffusion 3; the others need none."""

    file: Path
    is_lora: bool = False
    checkpoint: Path | None = None


# Lists


def listed() -> dict[str, Choice]:
    """The models that are there, by the names that the host shows: the bundled one, what is in our folder, and
    TSD-SR's published pairs of files among the host's LoRA files."""
    ours = [path for path in host.weights_files(host.MODEL_FOLDER) if path.name not in PARTS]
    loras = [path for path in ours if _is_tsd_sr(path)]
    pairs = [path for path in host.weights_files(host.lora_folder()) if _is_pair(path)]
    choices = {BUNDLED_NAME: Choice(BUNDLED)}
    choices |= {f"{TITLE}: {_inside(path)}": Choice(path) for path in ours if path not in loras}
    return choices | {f"TSD-SR: {_set_name(path)}": Choice(path, is_lora=True) for path in loras + pairs}


def choose(name: str, checkpoint: str | None) -> Choice:
    """The model of a name in the list, with the host's checkpoint of a name where it needs one. Raises UserError."""
    choice = listed().get(name)
    if choice is None:
        raise UserError(f"{name} is not there any more: refresh the list and choose another model.")
    if not choice.is_lora:
        return choice
    path = host.checkpoint_path(checkpoint)
    if path is None:
        raise UserError(f"{name} works on Stable Diffusion 3: choose a checkpoint of it beside the model.")
    return replace(choice, checkpoint=path)


def _is_tsd_sr(path: Path) -> bool:
    try:
        return path.suffix == ".safetensors" and one_step_lora.is_tsd_sr(read_weights(path))
    except UserError:
        return False  # so that it is listed, and the reason shown when it is chosen


def _is_pair(path: Path) -> bool:
    return path.name == TRANSFORMER_FILE and path.with_name(VAE_FILE).is_file()


def _inside(path: Path) -> str:
    return path.relative_to(host.MODEL_FOLDER).with_suffix("").as_posix()


def _set_name(lora: Path) -> str:
    """Published files are called alike in every set; the sets' folders are not."""
    return lora.parent.name if lora.name == TRANSFORMER_FILE else lora.stem


# Running


def run(choice: Choice, image: Image.Image, options: UpscaleOptions) -> Image.Image | None:
    """The picture enlarged, RGB or RGBA; None where the user interrupted. Raises UserError as the core does."""
    if host.is_interrupted():
        return None
    with host.plain_torch():
        opened = _open(choice, host.compute_dtype(), host.budget(), _modification_time(choice.file))
        try:
            with host.room_for(opened.size + WORKSPACE), opened.on_device(host.device()):
                reports = host.tile_progress(), host.warn, _tile_policy(choice, host.task())
                return to_pillow(enlarge(opened.model, from_pillow(image), options, *reports))
        except host.Interrupted:
            return None


@lru_cache(maxsize=1)
def _tile_policy(choice: Choice, task: str) -> TilePolicy:
    """One for all pictures of a batch, so that none tries again what memory was too small for."""
    return TilePolicy()


@dataclass(frozen=True)
class OpenedModel:
    """A model that rests in main memory between pictures. `size` is what it takes of the device, in bytes;
    `modules` are those that do not move there by themselves."""

    model: SRModel
    size: int
    modules: tuple[nn.Module, ...] = ()

    @contextmanager
    def on_device(self, device: torch.device) -> Iterator[None]:
        try:
            for module in self.modules:
                module.to(device)
            yield
        finally:
            for module in self.modules:
                module.to("cpu")


@lru_cache(maxsize=1)
def _open(choice: Choice, dtype: torch.dtype, budget: int | None, modification_time: float) -> OpenedModel:
    """The last one is kept for the next picture of a batch, and read again where its file was replaced."""
    _open.cache_clear()  # now, not after: there may be no room for two
    if choice.checkpoint is not None:
        return _open_tsd_sr(choice.file, choice.checkpoint, dtype, budget)
    loaded = load(choice.file, dtype=dtype, budget=budget)
    return OpenedModel(loaded.model, sum(map(_bytes, loaded.modules)), loaded.modules)


def _open_tsd_sr(lora: Path, checkpoint: Path, dtype: torch.dtype, budget: int | None) -> OpenedModel:
    source = lora.parent if lora.name == TRANSFORMER_FILE else lora
    weights = one_step_lora.read(source)
    if weights.unet:
        raise UserError(
            f"{lora.name} is a LoRA for {weights.base}, which runs in ComfyUI and on the command line only."
        )
    loaded = load_sd3(
        checkpoint,
        source,
        embeddings=None if weights.embeddings else _embeddings(),
        dtype=dtype,
        device=host.device(),
        offload=True,
        budget=budget,
    )
    host.warn(loaded.warning)
    return OpenedModel(loaded.model, max(map(_bytes, loaded.modules)))  # one is on the device at a time


def _embeddings() -> Path:
    found = [path for path in host.weights_files(host.MODEL_FOLDER) if path.name == PROMPT_FILE]
    if not found:
        raise UserError(f"TSD-SR's prompt is missing: put {PROMPT_FILE} and {POOLED_FILE} into {host.MODEL_FOLDER}.")
    return found[0]


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.parameters())


def _modification_time(path: Path) -> float:
    return path.stat().st_mtime if path.is_file() else 0.0
