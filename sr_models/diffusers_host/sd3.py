"""Open Stable Diffusion 3 with diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.process import flow_matching
from ..families.bases import sd3_kind
from .base import OpenedBase
from .sd3_files import open_networks
from .sd3_prompts import open_text_encoders

__all__ = ["call_transformer", "open_base", "open_text_encoders"]


def open_base(base: Path, dtype: torch.dtype) -> OpenedBase:
    """Open a diffusers folder, or a single checkpoint file in Stability's format. Raises UserError as `open_networks`.

    The process is the straight path: the schedule's shift only selects timesteps for sampling in many steps.
    """
    transformer, vae = open_networks(base, dtype)
    config: Any = transformer.config
    kind = sd3_kind(normalized=bool(config.get("qk_norm")), dual=bool(config.get("dual_attention_layers")))
    return OpenedBase(kind, transformer, vae, flow_matching(shift=1.0), call_transformer)


def call_transformer(network: Any, z_t: Tensor, timestep: Tensor, prompt: Tensor, pooled: Tensor) -> Tensor:
    """Stable Diffusion 3's velocity for latents (B, 16, h, w) at timesteps (B,), in the prompt's precision."""
    return network(
        hidden_states=z_t.to(prompt.dtype),
        timestep=timestep,
        encoder_hidden_states=prompt,
        pooled_projections=pooled,
        return_dict=False,
    )[0]
