"""A LoRA merged into a network's weights."""

from __future__ import annotations

from torch import nn

from ..checkpoints.lora_fit import require_fit
from ..checkpoints.low_rank import Update, merge


def merge_update(network: nn.Module, update: Update, name: str, target: str, base: str) -> None:
    """Add an update to a network's weights. Raises UserError where it does not fit; arguments as `require_fit`'s."""
    weights = {name.removesuffix(".weight"): tensor for name, tensor in network.named_parameters()}
    require_fit(update, {name: tuple(tensor.shape) for name, tensor in weights.items()}, name, target, base)
    for module, layer in update.items():
        weights[module].data = merge(weights[module].data, layer)
