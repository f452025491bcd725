"""Interface to Automatic1111 or Forge: folders, settings, device, memory, progress and Interrupt."""

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
from ...sr_models.canvas.wrap import WRAPS, Wrap
from ...sr_models.checkpoints.weights_file import SUFFIXES
from ...sr_models.core.devices import default_dtype
from ...sr_models.core.memory import available
from ...sr_models.core.model import Stage
from ...sr_models.core.options import UpscaleOptions
from ...sr_models.core.upscale import Progress
from ...sr_models.jobs.model_choice import DTYPES

try:
    from backend import memory_management  # Forge's; Automatic1111 has none
except ImportError:
    memory_management = None

MODEL_FOLDER = Path(models_path, "OneStepSR")  # depends on --data-dir and --models-dir
AUTO = "auto"


class Interrupted(Exception):  # noqa: N818 (not an error)
    """The user pressed Interrupt or Skip."""


# Files


def weights_files(folder: Path) -> list[Path]:
    """The weights files in a folder and its subfolders."""
    return [Path(name) for name in modelloader.load_models(str(folder), ext_filter=list(SUFFIXES))]


def lora_folder() -> Path:
    """The host's LoRA folder, as set by its built-in Lora extension."""
    return Path(getattr(shared.cmd_opts, "lora_dir", None) or Path(models_path, "Lora"))


def checkpoint_names() -> list[str]:
    return sd_models.checkpoint_tiles()


def checkpoint_path(name: str | None) -> Path | None:
    """The file for one of `checkpoint_names`, or None."""
    info = sd_models.checkpoint_aliases.get(name)
    return Path(info.filename) if info else None


# Settings


def setting(name: str) -> Any:
    """A value from the Settings page; see settings.py."""
    return getattr(shared.opts, f"onestep_sr_{name}")


def options(
    scale: float,
    tile: int,
    overlap: int,
    color: ColorMatch | Literal["auto"],
    seed: int | None = 0,
    detail: float | None = None,
    strength: float | None = None,
    wrap: Wrap | None = None,
) -> UpscaleOptions:
    """Options for the core. Tile 0, color `auto` and no detail mean the model's defaults; an empty seed means 0, an
    empty strength 1."""
    matched = None if color == AUTO else color
    return UpscaleOptions(
        scale,
        int(tile) or None,
        int(overlap),
        matched,
        int(seed or 0),
        detail=detail,
        strength=1.0 if strength is None else strength,
        wrap=wrap or WRAPS[0],
    )


def default_options(scale: float) -> UpscaleOptions:
    """Options with the values of the Settings page."""
    tile, overlap, color = setting("tile"), setting("overlap"), setting("color")
    return options(scale, tile, overlap, color, detail=setting("detail"), strength=setting("strength"))


def budget() -> int | None:
    """Memory for an autoencoder's feature maps in bytes; None for all free memory."""
    return int(setting("budget")) * 2**20 or None


# Computing


def device() -> torch.device:
    """The device of the host's upscalers; depends on `--use-cpu` and `--device-id`."""
    return devices.device_esrgan


def compute_dtype() -> torch.dtype:
    """The precision from the Settings page; `auto` means the host's precision, or on a CPU the core's default."""
    if setting("dtype") != AUTO:
        return DTYPES[setting("dtype")]
    return default_dtype(device()) if device().type == "cpu" else devices.dtype


@contextmanager
def plain_torch() -> Iterator[None]:
    """Leave inference mode and autocast, which are active when the host upscales during generation: weights loaded in
    inference mode cannot be used outside it, and autocast would override the chosen precision."""
    with torch.inference_mode(False), torch.no_grad(), devices.without_autocast():
        yield


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Try to free `size` bytes on the device by unloading the host's own model for the time being."""
    if memory_management is not None:
        memory_management.free_memory(size, device())  # Forge reloads its model when needed
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


def task() -> str:
    """What the host works on: one for all pictures of a batch."""
    return shared.state.job_timestamp


def is_interrupted() -> bool:
    return shared.state.interrupted or shared.state.skipped


def stage_progress() -> Stage:
    """A callback for work other than tiles: shows its share, and raises Interrupted if the user interrupts."""
    text = shared.state.textinfo

    def update(done: int, total: int) -> None:
        shared.state.textinfo = " ".join(filter(None, [text, f"encoding or decoding, {100 * done // total} %"]))
        if is_interrupted():
            raise Interrupted

    return update


def tile_progress() -> Progress:
    """A progress callback for the host's progress bar and live preview; raises Interrupted if the user interrupts."""
    text = shared.state.textinfo

    def update(done: int, total: int, preview: Tensor) -> None:
        state = shared.state
        state.sampling_step, state.sampling_steps = done, total
        # In Extras the bar counts pictures, and is full when the last one starts.
        state.textinfo = text if done == total else " ".join(filter(None, [text, f"tile {done} of {total}"]))
        if shared.opts.live_previews_enable:
            state.assign_current_image(_picture(preview))
        if is_interrupted():
            raise Interrupted

    return update


def warn(text: str) -> None:
    """Show a warning to the user; does nothing for an empty text."""
    if text:
        gr.Warning(text)


def _picture(preview: Tensor) -> Image.Image:
    return Image.fromarray((preview.movedim(0, -1) * 255).round().byte().cpu().numpy())
