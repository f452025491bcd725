"""Automatic1111 or Forge as the host: its folders, settings, device, memory, progress and Interrupt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import gradio as gr
import torch
from modules import devices, modelloader, sd_models, shared
from modules.paths import models_path
from PIL import Image
from torch import Tensor

from ...sr_models.canvas.color import ColorMatch
from ...sr_models.checkpoints.weights_file import SUFFIXES
from ...sr_models.core.devices import default_dtype
from ...sr_models.core.memory import available
from ...sr_models.core.upscale import Progress
from ...sr_models.jobs.job import Options
from ...sr_models.jobs.model_choice import DTYPES

try:
    from backend import memory_management  # Forge's; Automatic1111 has none
except ImportError:
    memory_management = None

MODEL_FOLDER = Path(models_path, "OneStepSR")  # --data-dir and --models-dir move it
AUTO = "auto"


class Interrupted(Exception):  # noqa: N818 (no error)
    """The user pressed Interrupt or Skip."""


# Files


def weights_files(folder: Path) -> list[Path]:
    """The weights files in a folder and the folders in it."""
    return [Path(name) for name in modelloader.load_models(str(folder), ext_filter=list(SUFFIXES))]


def lora_folder() -> Path:
    """Where the host's own LoRA files are; the extension that comes with it names it."""
    return Path(getattr(shared.cmd_opts, "lora_dir", None) or Path(models_path, "Lora"))


def checkpoint_names() -> list[str]:
    return sd_models.checkpoint_tiles()


def checkpoint_path(name: str | None) -> Path | None:
    """The file of one of `checkpoint_names`, or None."""
    info = sd_models.checkpoint_aliases.get(name)
    return Path(info.filename) if info else None


# Settings


def setting(name: str) -> Any:
    """What the Settings page holds; see settings.py."""
    return getattr(shared.opts, f"onestep_sr_{name}")


def options(
    scale: float, tile: int, overlap: int, color: ColorMatch | Literal["auto"], seed: int | None = 0
) -> Options:
    """One run's options as the core takes them. Tile 0 and color `auto` are the model's own; an empty seed is 0."""
    return Options(scale, int(tile) or None, int(overlap), None if color == AUTO else color, int(seed or 0))


def default_options(scale: float) -> Options:
    """With what the Settings page holds."""
    return options(scale, setting("tile"), setting("overlap"), setting("color"))


def budget() -> int | None:
    """Bytes for an autoencoder's feature maps; None for what is free."""
    return int(setting("budget")) * 2**20 or None


# Computing


def device() -> torch.device:
    """Where the host runs its upscalers: `--use-cpu` and `--device-id` change it."""
    return devices.device_esrgan


def compute_dtype() -> torch.dtype:
    """The Settings page's precision; for `auto` the host's own, on a CPU the core's choice."""
    if setting("dtype") != AUTO:
        return DTYPES[setting("dtype")]
    return default_dtype(device()) if device().type == "cpu" else devices.dtype


@contextmanager
def plain_torch() -> Iterator[None]:
    """Leave the modes that the host is in where it upscales in the middle of its own generation: weights that are
    loaded in inference mode cannot be used outside it, and autocast would overrule the chosen precision."""
    with torch.inference_mode(False), torch.no_grad(), devices.without_autocast():
        yield


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Make `size` bytes free on the device, as far as the host's own model can make way for the time."""
    if memory_management is not None:
        memory_management.free_memory(size, device())  # Forge takes its model back in when it needs it
        yield
        return
    model = sd_models.model_data.sd_model
    if model is None or device().type == "cpu" or available(device()) >= size:
        yield
        return
    sd_models.send_model_to_cpu(model)
    try:
        yield
    finally:
        sd_models.send_model_to_device(model)


def is_interrupted() -> bool:
    return shared.state.interrupted or shared.state.skipped


def tile_progress() -> Progress:
    """A progress callback that feeds the host's bar and live preview; raises Interrupted where the user wants it."""
    text = shared.state.textinfo

    def update(done: int, total: int, preview: Tensor) -> None:
        state = shared.state
        state.sampling_step, state.sampling_steps = done, total
        # In Extras the bar itself counts pictures, and is full at the last one's start.
        state.textinfo = text if done == total else " ".join(filter(None, [text, f"tile {done} of {total}"]))
        if shared.opts.live_previews_enable:
            state.assign_current_image(_picture(preview))
        if is_interrupted():
            raise Interrupted

    return update


def warn(text: str) -> None:
    """Show what the user should know though the run goes on; nothing for an empty text."""
    if text:
        gr.Warning(text)


def _picture(preview: Tensor) -> Image.Image:
    return Image.fromarray((preview.movedim(0, -1) * 255).round().byte().cpu().numpy())
