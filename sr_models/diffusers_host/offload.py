"""Where modules compute, and where they wait."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Placement:
    """Where modules compute, and whether they wait on the CPU between uses, for small cards."""

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
