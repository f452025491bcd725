"""Interface to ComfyUI: model folders, web routes, devices, model management, image layout and progress."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
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

import nodes as stock_nodes

from ..sr_models.checkpoints.weights_file import SUFFIXES
from ..sr_models.core.devices import default_dtype
from ..sr_models.core.memory import available
from ..sr_models.core.model import SRModel
from ..sr_models.families.family import Family, OpenedModel

MODEL_FOLDER = "onestep_sr"
PREVIEW_SIDE = 512
LONGEST_REQUEST = 64 * 2**10  # bytes; the page's questions have a few hundred


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

    def to_device(self, workspace: int) -> None:
        """Load all modules onto the compute device, and free `workspace` bytes there beside them."""
        if not self.patchers:
            return
        # Only comfy.ops modules can stream their weights, so these are loaded completely.
        model_management.load_models_gpu(list(self.patchers), workspace, force_full_load=True)
        for patcher in self.patchers:
            patcher.model.to(patcher.load_device)  # with --novram ComfyUI does not move plain modules


def register_model_folder() -> None:
    """Add `models/onestep_sr` to ComfyUI's model folders, and create it; paths of extra_model_paths.yaml are kept."""
    folder = os.path.join(folder_paths.models_dir, MODEL_FOLDER)
    with suppress(OSError):  # a folder that cannot be written to may still be read
        os.makedirs(folder, exist_ok=True)
    folder_paths.add_model_folder_path(MODEL_FOLDER, folder)


def menu_of(node_id: str, otherwise: str) -> str:
    """The menu group of one of the host's nodes, in which ours belong too; `otherwise` if the host has no such node."""
    stock = stock_nodes.NODE_CLASS_MAPPINGS.get(node_id)  # pyright: ignore[reportAttributeAccessIssue] (the host's)
    return getattr(stock, "CATEGORY", otherwise)


def weights_files(*folders: str) -> list[str]:
    """Names of the weights files in ComfyUI's model folders of these kinds."""
    names = (name for folder in folders for name in folder_paths.get_filename_list(folder))
    return sorted({name for name in names if name.lower().endswith(SUFFIXES)})


def weights_path(name: str, *folders: str) -> Path:
    """The path of a file listed by `weights_files`; an unknown name is returned as a path."""
    found = (folder_paths.get_full_path(folder, name) for folder in folders)
    return Path(next((path for path in found if path), name))


def model_folders(kind: str) -> list[Path]:
    """ComfyUI's model folders of a kind; the first one is for new files."""
    return [Path(folder) for folder in folder_paths.get_folder_paths(kind)]


def user_folder() -> Path:
    """This pack's folder in ComfyUI's user folder; it may not exist yet."""
    return Path(folder_paths.get_user_directory()) / MODEL_FOLDER


def temporary_folder() -> Path:
    """ComfyUI's folder for temporary files."""
    return Path(folder_paths.get_temp_directory())


def add_route(path: str, answer: Callable[[Any], dict[str, Any]]) -> None:
    """Answer POST requests with JSON, in a thread, so that the server never waits for `answer`.

    A request over LONGEST_REQUEST bytes or that is not JSON, and a ValueError from `answer`, give status 400. Pages of
    other origins cannot send the content type of JSON without leave, which the host does not give; where it knows that
    it runs on this machine only, it also refuses them itself.
    """

    @PromptServer.instance.routes.post(path)
    async def respond(request: web.Request) -> web.Response:
        try:
            if request.content_type != "application/json":
                raise ValueError("its content type is not application/json")
            content = json.loads(await _body(request))
            return web.json_response(await asyncio.to_thread(answer, content))
        except ValueError as error:
            reason = str(error)
        except RecursionError:
            reason = "too many nested lists or objects"
        return web.json_response({"error": f"This request cannot be read ({reason})."}, status=400)


def on_prompt(change: Callable[[dict[str, Any]], None]) -> None:
    """Let `change` edit each queued prompt, {node's number: {class_type, inputs}}, before the host checks it."""

    def handle(request: dict[str, Any]) -> dict[str, Any]:
        change(request.get("prompt", {}))  # the host logs what fails here, and goes on with the prompt as it is
        return request

    PromptServer.instance.add_on_prompt_handler(handle)


async def _body(request: web.Request) -> bytes:
    body = b""
    async for chunk in request.content.iter_chunked(LONGEST_REQUEST):
        body += chunk
        if len(body) > LONGEST_REQUEST:
            raise ValueError(f"longer than {LONGEST_REQUEST} bytes")
    return body


def show_on_node(node_id: str, text: str) -> None:
    """Show a text on a node of the graph without stopping the run; does nothing for an empty text."""
    if text:
        PromptServer.instance.send_progress_text(text, node_id)


def licence_notices(family: Family) -> list[str]:
    """What to show on a node that has loaded a family's weights. Its licence is printed when they are first loaded."""
    print_once(family.licence_notice)
    return [family.licence_notice] if family.is_non_commercial else []


@cache
def print_once(text: str) -> None:
    """Print a licence, once for a session."""
    logging.info("One-Step SR: %s", text)


def device_name() -> str:
    return model_management.get_torch_device_name(compute_device())


def compute_device() -> torch.device:
    return model_management.get_torch_device()


def free_memory(device: torch.device) -> int:
    """Bytes of a device that are free, or that ComfyUI frees when it needs them by unloading models."""
    known = (each for each in model_management.current_loaded_models if each.device.type == device.type)
    return available(device) + sum(each.model_loaded_memory() for each in known if each.model is not None)


def compute_dtype() -> torch.dtype:
    """ComfyUI's precision for its compute device; on a CPU, the core's default."""
    device = compute_device()
    if device.type == "cpu":
        return default_dtype(device)
    if model_management.should_use_fp16(device):
        return torch.float16
    return torch.bfloat16 if model_management.should_use_bf16(device) else torch.float32


def adopt(opened: OpenedModel) -> HostedModel:
    """Let ComfyUI manage the modules of an opened model."""
    devices = compute_device(), model_management.unet_offload_device()
    return HostedModel(opened, tuple(ModelPatcher(module, *devices) for module in opened.modules))


def from_host(image: Tensor) -> Tensor:
    """ComfyUI's (B, H, W, C) -> the core's (B, C, H, W), float32."""
    return image.movedim(-1, 1).float()


def to_host(image: Tensor) -> Tensor:
    """The core's (B, C, H, W) -> ComfyUI's (B, H, W, C), on its device and in its precision between nodes."""
    return image.movedim(1, -1).contiguous().to(model_management.intermediate_device(), intermediate_dtype())


def intermediate_dtype() -> torch.dtype:
    """ComfyUI's precision for images and latents between nodes: float16 with --fp16-intermediates on newer hosts."""
    chosen = getattr(model_management, "intermediate_dtype", None)
    return chosen() if chosen else torch.float32


class Bar:
    """ComfyUI's progress bar and preview for one run. Both callbacks stop the run if the user cancels."""

    def __init__(self) -> None:
        self.bar: comfy.utils.ProgressBar | None = None
        self.has_tiles = False

    def tile(self, done: int, total: int, preview: Tensor) -> None:
        """A `Progress` callback."""
        self.has_tiles = True
        self._show(done, total, ("JPEG", _picture(preview), PREVIEW_SIDE))

    def stage(self, done: int, total: int) -> None:
        """A `Stage` callback, for a run without tiles, or before and after them; after them the bar stays full."""
        if not self.has_tiles:
            self._show(done, total)
        model_management.throw_exception_if_processing_interrupted()

    def _show(self, done: int, total: int, preview: tuple[str, Image.Image, int] | None = None) -> None:
        bar = self.bar = self.bar or comfy.utils.ProgressBar(total)
        bar.update_absolute(done, total, preview)
        model_management.throw_exception_if_processing_interrupted()


def _picture(preview: Tensor) -> Image.Image:
    return Image.fromarray((preview.movedim(0, -1) * 255).round().byte().cpu().numpy())
