"""The device on which modules compute, and offloading to the CPU."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Placement:
    """The device on which modules compute, and whether they are moved to the CPU while not in use."""

    device: torch.device
    offload: bool = False

    @contextmanager
    def on_device(self, module: nn.Module):
        module.to(self.device)
        try:
            yield
        finally:
            if self.offload:
                module.to("cpu")
