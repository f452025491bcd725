"""What a base and a LoRA become: an SR model and the modules in it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..core.model import SRModel


@dataclass(frozen=True)
class StandaloneModel:
    """An SR model, the torch modules in it, and what its user should know though it runs; empty for nothing."""

    model: SRModel
    modules: tuple[nn.Module, ...]
    warning: str
