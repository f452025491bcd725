"""Interface to Automatic1111, Forge, Forge Neo or reForge: folders, settings, device, memory, progress, Interrupt."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import gradio as gr
import torch
from modules import devices, modelloader, scripts, sd_models, shared
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

# That of Forge and Forge Neo, or reForge's; Automatic1111 has none.
MEMORY_MANAGEMENT = ("backend.memory_management", "ldm_patched.modules.model_management")
memory_management = next((sys.modules[name] for name in MEMORY_MANAGEMENT if name in sys.modules), None)

MODEL_FOLDER = Path(models_path, "OneStepSR")  # depends on --data-dir and --models-dir
COMFYUI_FOLDER = "onestep_sr"
AUTO = "auto"


class Interrupted(Exception):  # noqa: N818 (not an error)
    """The user pressed Interrupt or Skip."""


# Files


def weights_files(folder: Path) -> list[Path]:
    """The weights files in a folder and its subfolders."""
    return [Path(name) for name in modelloader.load_models(str(folder), ext_filter=list(SUFFIXES))]


def lora_folders() -> list[Path]:
    """The host's LoRA folder, as set by its built-in Lora extension, and Forge Neo's further ones."""
    own = getattr(shared.cmd_opts, "lora_dir", None) or Path(models_path, "Lora")
    return [Path(folder) for folder in (own, *_lora_dirs())]


def model_folders() -> list[Path]:
    """The pack's model folder, and those of ComfyUI or Automatic1111, beside LoRA folders that Forge Neo shares."""
    names = (MODEL_FOLDER.name, COMFYUI_FOLDER)
    return [MODEL_FOLDER, *(Path(folder).with_name(name) for folder in _lora_dirs() for name in names)]


def _lora_dirs() -> list[str]:
    """Forge Neo's `--lora-dirs`, to which it adds those of a ComfyUI or Automatic1111 that it refers to."""
    return getattr(shared.cmd_opts, "lora_dirs", [])


def checkpoint_names() -> list[str]:
    return sd_models.checkpoint_tiles()


def list_checkpoints() -> None:
    """Let the host look for new checkpoints."""
    sd_models.list_models()


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
    """The precision from the Settings page; `auto` means the host's precision, or the core's default on a CPU and for
    a host that only stores weights in its precision (reForge's `--unet-in-fp8-*`)."""
    if setting("dtype") != AUTO:
        return DTYPES[setting("dtype")]
    hosts = device().type != "cpu" and devices.dtype in DTYPES.values()
    return devices.dtype if hosts else default_dtype(device())


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
        memory_management.free_memory(size, device())  # the host reloads its model when needed
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


@contextmanager
def counted_when_done() -> Iterator[None]:
    """Extras counts a picture as done when it starts, which would fill the bar at the last one's first tile. Count it
    when it is done. In Extras the job has the name of a section; during a generation the count is right."""
    early = shared.state.job in {section.name for section in scripts.scripts_postproc.scripts_in_preferred_order()}
    shared.state.job_no -= early
    try:
        yield
    finally:
        shared.state.job_no += early


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
