"""An opened Stable Diffusion, in the same form for every version."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.process import Process
from ..families.bases import BaseKind

Call = Callable[[Any, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class OpenedBase:
    """diffusers' network and VAE, frozen, on the CPU.

    Attributes:
        kind: its version of Stable Diffusion.
        process: its noise process.
        call: network, latent (B, c, h, w), timesteps (B,), prompt and pooled prompt -> the raw prediction.
    """

    kind: BaseKind
    network: Any
    vae: Any
    process: Process
    call: Call
