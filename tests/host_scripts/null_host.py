"""ComfyUI with a device without memory in place of its GPU; see `null_device`. The weights of what ran are lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from comfy import model_management
from null_device import NULL, NullDevice

ROOM = 64 * 2**30
CPU = torch.device("cpu")
ANSWERS = {
    "get_torch_device": NULL,
    "vae_device": NULL,
    "unet_offload_device": CPU,
    "vae_offload_device": CPU,
    "intermediate_device": CPU,
    "get_total_memory": ROOM,
    "soft_empty_cache": None,
    "should_use_fp16": False,
}


def free_memory(device: Any = None, torch_free_too: bool = False) -> Any:
    return (ROOM, 0) if torch_free_too else ROOM


@contextmanager
def on_null_device(model: Any, vae: Any) -> Iterator[None]:
    """The host, and these two, compute there."""
    for patcher in (model, vae.patcher):
        patcher.load_device, patcher.offload_device = NULL, CPU
    vae.device = NULL
    answers = {name: lambda *_, found=found, **__: found for name, found in ANSWERS.items()}
    with mock.patch.multiple(model_management, get_free_memory=free_memory, **answers):
        yield
    model_management.current_loaded_models.clear()  # unloading would copy weights, of which there are none


def mixed(work: Callable[[Any, Any], Any], model: Any, vae: Any) -> list[str]:
    """Operations of work(model, vae) on tensors of the device and the CPU. It must also copy between them."""
    with on_null_device(model, vae), NullDevice() as device:
        work(model, vae)
    return device.mixed if device.copies else ["nothing ran on the device"]
