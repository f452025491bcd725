"""Merge LoRAs into a network's weights, once or for each picture, and replace weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ..checkpoints.lora_fit import require_fit
from ..checkpoints.low_rank import Adapter, Update, merge
from ..checkpoints.weights_file import shortened
from ..core.model import SRModel
from ..errors import UserError
from ..families.family import OneStepLora
from .offload import Placement


class MergedAdapter:
    """A LoRA that is merged into a network's weights.

    Its two matrices stay on the CPU, so that the strength can be changed. A change adds the difference, which is
    rounded once to the network's precision, as in the first merge.
    """

    def __init__(self, network: nn.Module, adapter: Adapter, lora: str, target: str, base: str):
        """Raises UserError if the LoRA does not fit; `lora`, `target` and `base` are as in `require_fit`."""
        self.network, self.adapter, self.strength = network, adapter, 0.0
        _require_fit(network, adapter, lora, target, base)
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


class PictureAdapter:
    """A LoRA that depends on the picture. It is merged for one picture after the other, each time into the weights
    without it, of which a second copy stays on the CPU."""

    def __init__(self, network: nn.Module, adapter: Adapter, lora: str, target: str, base: str):
        """Raises UserError as `MergedAdapter`."""
        _require_fit(network, adapter, lora, target, base)
        weights = dict(network.named_parameters())
        self.network, self.name, self.strength = network, adapter.name, adapter.strength
        self.without = {module: weights[f"{module}.weight"].data for module in adapter.update}

    def set_strength(self, strength: float) -> None:
        """Set the strength for the next pictures."""
        self.strength = strength

    def merge(self, update: Update) -> None:
        """Set the weights to W + strength * alpha / r * B A, with the update for a picture."""
        weights = dict(self.network.named_parameters())
        for module, layer in update.items():
            weight = weights[f"{module}.weight"]
            weight.data = merge(self.without[module].to(weight.device, copy=True), layer, self.strength)


@dataclass(frozen=True)
class ByPicture:
    """An SR model's `by_picture`: merges the LoRA for a picture. `adapters` are those of the U-Net, then the VAE's."""

    lora: OneStepLora
    modulator: nn.Module
    adapters: tuple[PictureAdapter, ...]
    placement: Placement
    model: SRModel

    def __call__(self, picture: Tensor) -> SRModel:
        with self.placement.on_device(self.modulator):
            lora = self.lora.for_picture(picture)
        for merged, adapter in zip(self.adapters, (*lora.network, *lora.vae), strict=True):
            merged.merge(adapter.update)
        return self.model


def _require_fit(network: nn.Module, adapter: Adapter, lora: str, target: str, base: str) -> None:
    shapes = {name.removesuffix(".weight"): tuple(weight.shape) for name, weight in network.named_parameters()}
    if adapter.update:
        require_fit(adapter, shapes, lora, target, base)


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
