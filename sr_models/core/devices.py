"""Devices, and the default precision of each."""

from __future__ import annotations

import torch

from ..errors import UserError

DEVICES = ("cuda", "mps", "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """The fastest precision without visible loss: float16 on CUDA, bfloat16 on CPUs with matrix units for it, else
    float32."""
    if device.type == "cuda":
        return torch.float16
    has_matrix_units = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)  # absent from older torch
    return torch.bfloat16 if device.type == "cpu" and has_matrix_units() else torch.float32


def find_device(name: str) -> torch.device:
    """The named device; `auto` means the fastest available. Raises UserError for a device that is not available."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device in DEVICES if available[device]))
    if not available[name]:
        raise UserError(f"Device {name} is not available: choose cpu or auto.")
    return torch.device(name)
