"""The device on which modules compute, and offloading to the CPU."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Placement:
    """The device on which modules compute, and whether they are moved to the CPU while not in use."""

    device: torch.device
    offload: bool = False

    @contextmanager
    def on_device(self, module: nn.Module):
        if self.offload or not self._has(module):
            self._fetch(module)
        try:
            yield
        finally:
            if self.offload:
                module.to("cpu")

    def _has(self, module: nn.Module) -> bool:
        """Whether the module is on the device, by its first weight: a walk over all of a large network takes long."""
        # "cuda" is the current one of its devices.
        return next(module.parameters()).device == torch.empty(0, device=self.device).device

    def _fetch(self, module: nn.Module) -> None:
        """Move all of the module, or none of it if memory runs out."""
        try:
            module.to(self.device)
        except BaseException:
            module.to("cpu")
            raise


@dataclass(frozen=True)
class Placed:
    """A module that is moved to its device when it is called."""

    module: nn.Module
    placement: Placement

    def __call__(self, *inputs: Any) -> Any:
        with self.placement.on_device(self.module):
            return self.module(*inputs)
