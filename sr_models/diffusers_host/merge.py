"""Merge LoRAs into a network's weights, and replace weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from ..checkpoints.lora_fit import require_fit
from ..checkpoints.low_rank import Adapter, merge
from ..checkpoints.weights_file import shortened
from ..errors import UserError


class MergedAdapter:
    """A LoRA that is merged into a network's weights.

    Its two matrices stay on the CPU, so that the strength can be changed. A change adds the difference, which is
    rounded once to the network's precision, as in the first merge.
    """

    def __init__(self, network: nn.Module, adapter: Adapter, lora: str, target: str, base: str):
        """Raises UserError if the LoRA does not fit; `lora`, `target` and `base` are as in `require_fit`."""
        self.network, self.adapter, self.strength = network, adapter, 0.0
        shapes = {name.removesuffix(".weight"): tuple(weight.shape) for name, weight in network.named_parameters()}
        if adapter.update:
            require_fit(adapter, shapes, lora, target, base)
        self.set_strength(adapter.strength)

    @property
    def name(self) -> str:
        return self.adapter.name

    def on_copy(self, network: nn.Module) -> MergedAdapter:
        """The same LoRA in a copy of the network."""
        other = copy.copy(self)
        other.network = network
        return other

    def set_strength(self, strength: float) -> None:
        """Set the weights to W + strength * alpha / r * B A, W being those without the LoRA."""
        if strength == self.strength:
            return
        weights = dict(self.network.named_parameters())
        for module, layer in self.adapter.update.items():
            weight = weights[f"{module}.weight"]
            weight.data = merge(weight.data, layer, strength - self.strength)
        self.strength = strength


def replace_weights(network: nn.Module, tensors: Mapping[str, Tensor], lora: str, *, whole: bool = False) -> None:
    """Replace parameters' values. Raises UserError for a name or shape that the network does not have, and if `whole`
    and there are tensors, for parameters that keep their value."""
    weights = dict(network.named_parameters())
    kept = sorted(weights.keys() - tensors.keys()) if whole and tensors else []
    if kept:
        raise UserError(f"{lora}, but it lacks {len(kept)} weights of the base ({shortened(kept)}): download it again.")
    for name, tensor in tensors.items():
        if name not in weights or weights[name].shape != tensor.shape:
            raise UserError(f"{lora}, but the base has no {name} of shape {tuple(tensor.shape)}: use another base.")
        weights[name].data = tensor.to(weights[name].data)
