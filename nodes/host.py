"""Interface to ComfyUI: model folders, web routes, devices, model management, image layout and progress."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
import torch
from aiohttp import web
from comfy import model_management
from comfy.model_patcher import ModelPatcher
from PIL import Image
from server import PromptServer
from torch import Tensor

from ..sr_models.checkpoints.weights_file import SUFFIXES
from ..sr_models.core.devices import default_dtype
from ..sr_models.core.model import SRModel
from ..sr_models.core.upscale import Progress
from ..sr_models.families.family import Family, OpenedModel

MODEL_FOLDER = "onestep_sr"
PREVIEW_SIDE = 512
# VQ-f4 keeps about six feature maps of 128 channels at full size while it encodes or decodes.
AUTOENCODER_VALUES_PER_PIXEL = 6 * 128


@dataclass(frozen=True)
class HostedModel:
    """The value of the SR_MODEL socket: an opened model, and a ComfyUI patcher for each of its modules.

    ComfyUI identifies loaded models by their patchers, so each module keeps one patcher for as long as the model
    exists: with a new patcher per run, the module would be loaded twice. A model built from ComfyUI's own MODEL and
    VAE has no modules and no patchers here, because ComfyUI loads those itself.
    """

    opened: OpenedModel
    patchers: tuple[ModelPatcher, ...]

    @property
    def model(self) -> SRModel:
        return self.opened.model

    def to_device(self, pixels: int) -> None:
        """Load all modules onto the compute device, and free memory there for a result of `pixels` pixels."""
        if not self.patchers:
            return
        # Only comfy.ops modules can stream their weights, so these are loaded completely.
        model_management.load_models_gpu(list(self.patchers), self._workspace(pixels), force_full_load=True)
        for patcher in self.patchers:
            patcher.model.to(patcher.load_device)  # with --novram ComfyUI does not move plain modules

    def _workspace(self, pixels: int) -> int:
        """Bytes that the autoencoder needs to process `pixels` pixels at once; networks run on small tiles."""
        if len(self.patchers) == 1:
            return 0
        return pixels * AUTOENCODER_VALUES_PER_PIXEL * next(self.patchers[1].model.parameters()).element_size()


def register_model_folder() -> None:
    """Add `models/onestep_sr` to ComfyUI's model folders; paths from extra_model_paths.yaml are kept."""
    folder_paths.add_model_folder_path(MODEL_FOLDER, os.path.join(folder_paths.models_dir, MODEL_FOLDER))


def weights_files(*folders: str) -> list[str]:
    """Names of the weights files in ComfyUI's model folders of these kinds."""
    names = (name for folder in folders for name in folder_paths.get_filename_list(folder))
    return sorted({name for name in names if name.lower().endswith(SUFFIXES)})


def weights_path(name: str, *folders: str) -> Path:
    """The path of a file listed by `weights_files`; an unknown name is returned as a path."""
    found = (folder_paths.get_full_path(folder, name) for folder in folders)
    return Path(next((path for path in found if path), name))


def modification_times(paths: Iterable[Path]) -> tuple[float, ...]:
    """The modification time of each file; 0 for a file that does not exist."""
    return tuple(path.stat().st_mtime if path.is_file() else 0.0 for path in paths)


def user_folder() -> Path:
    """This pack's folder in ComfyUI's user folder; it may not exist yet."""
    return Path(folder_paths.get_user_directory()) / MODEL_FOLDER


def add_route(path: str, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer POST requests with JSON. A KeyError, TypeError or ValueError from `answer` gives status 400."""

    @PromptServer.instance.routes.post(path)
    async def respond(request: web.Request) -> web.Response:
        try:
            return web.json_response(answer(await request.json()))
        except (KeyError, TypeError, ValueError) as error:
            return web.json_response({"error": f"This request cannot be read ({error})."}, status=400)


def show_on_node(node_id: str, text: str) -> None:
    """Show a text on a node of the graph without stopping the run; does nothing for an empty text."""
    if text:
        PromptServer.instance.send_progress_text(text, node_id)


def licence_notices(family: Family) -> list[str]:
    """What to show on a node that has loaded a family's weights. Its licence is printed when they are first loaded."""
    _print_once(family.licence_notice)
    return [family.licence_notice] if family.is_non_commercial else []


@cache
def _print_once(text: str) -> None:
    logging.info("One-Step SR: %s", text)


def device_name() -> str:
    return model_management.get_torch_device_name(model_management.get_torch_device())


def compute_dtype() -> torch.dtype:
    """ComfyUI's precision for its compute device; on a CPU, the core's default."""
    device = model_management.get_torch_device()
    if device.type == "cpu":
        return default_dtype(device)
    if model_management.should_use_fp16(device):
        return torch.float16
    return torch.bfloat16 if model_management.should_use_bf16(device) else torch.float32


def adopt(opened: OpenedModel) -> HostedModel:
    """Let ComfyUI manage the modules of an opened model."""
    devices = model_management.get_torch_device(), model_management.unet_offload_device()
    return HostedModel(opened, tuple(ModelPatcher(module, *devices) for module in opened.modules))


def from_host(image: Tensor) -> Tensor:
    """ComfyUI's (B, H, W, C) -> the core's (B, C, H, W), float32."""
    return image.movedim(-1, 1).float()


def to_host(image: Tensor) -> Tensor:
    """The core's (B, C, H, W) -> ComfyUI's (B, H, W, C), on its device for images between nodes."""
    return image.movedim(1, -1).contiguous().to(model_management.intermediate_device())


def progress() -> Progress:
    """A callback that updates ComfyUI's progress bar and preview, and stops the run if the user cancels."""
    bar: list[comfy.utils.ProgressBar] = []

    def update(done: int, total: int, preview: Tensor) -> None:
        if not bar:
            bar.append(comfy.utils.ProgressBar(total))
        bar[0].update_absolute(done, total, ("JPEG", _picture(preview), PREVIEW_SIDE))
        model_management.throw_exception_if_processing_interrupted()

    return update


def row_progress() -> Callable[[int, int], None]:
    """A callback (done, total) that updates ComfyUI's progress bar, and stops the run if the user cancels."""
    bar: list[comfy.utils.ProgressBar] = []

    def update(done: int, total: int) -> None:
        if not bar:
            bar.append(comfy.utils.ProgressBar(total))
        bar[0].update_absolute(done, total)
        model_management.throw_exception_if_processing_interrupted()

    return update


def stop_if_cancelled(done: int, total: int) -> None:
    """A progress callback that only stops the run if the user cancels."""
    model_management.throw_exception_if_processing_interrupted()


def _picture(preview: Tensor) -> Image.Image:
    return Image.fromarray((preview.movedim(0, -1) * 255).round().byte().cpu().numpy())
