"""The distance between pictures in the features of a base's own VAE encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...measures.lpips import feature_distance
from .lora import active, checkpointed


def encoder_distance(vae: Any, ours: Tensor, theirs: Tensor) -> Tensor:
    """`feature_distance` of the VAE encoder's maps (without adapters) at the end of each level, averaged over levels:
    0 for equal pictures, about 2 for unrelated ones."""
    with active(vae):
        distance = feature_distance(_encoder_features(vae, ours), _encoder_features(vae, theirs))
    return distance / len(vae.encoder.down_blocks)


def _encoder_features(vae: Any, image: Tensor) -> list[Tensor]:
    encoder = vae.encoder
    saves_memory = encoder.gradient_checkpointing and torch.is_grad_enabled()
    maps, hidden = [], encoder.conv_in(image.to(encoder.conv_in.weight.dtype))
    for block in encoder.down_blocks:
        hidden = checkpointed(block, hidden) if saves_memory else block(hidden)
        maps.append(hidden.float())
    return maps
