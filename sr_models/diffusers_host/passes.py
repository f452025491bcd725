"""The passes of a LoRA over diffusers' network, at strengths that can be changed between runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

from ..core.model import Denoiser, Pass
from ..core.step import Step
from ..families.family import OneStepLora, Strengths
from .merge import MergedAdapter


class LoraPasses:
    """Iterates over the passes at the current strengths.

    The first pass runs the network itself. Each further one runs a copy, which is made when it is first needed and
    takes as much memory as the network: so changing between them costs nothing.
    """

    def __init__(
        self, network: nn.Module, lora: OneStepLora, step: Step, target: str, denoiser: Callable[[nn.Module], Denoiser]
    ):
        """Merges the LoRA into the network. `step` has the base's process; `target` is the network's name in messages.

        Raises UserError if the LoRA does not fit.
        """
        self.lora, self.step, self.denoiser = lora, step, denoiser
        merged = [MergedAdapter(network, adapter, lora.sentence, target, str(lora.base)) for adapter in lora.network]
        self.networks = [(network, merged)]
        self._scale()

    def __iter__(self) -> Iterator[Pass]:
        for (step, _), (network, _) in zip(self.lora.passes(self.step), self.networks, strict=False):
            yield Pass(step, self.denoiser(network))

    def set_strengths(self, strengths: Strengths) -> None:
        """Change strengths by adapter name, without reading files. Raises UserError as `OneStepLora.at`."""
        self.lora = self.lora.at(strengths)
        self._scale()

    def _scale(self) -> None:
        for number, (_, scales) in enumerate(self.lora.passes(self.step)):
            if number == len(self.networks):
                network, merged = self.networks[0]
                twin = copy.deepcopy(network)
                self.networks.append((twin, [adapter.on_copy(twin) for adapter in merged]))
            for adapter in self.networks[number][1]:
                adapter.set_strength(scales[adapter.name])


@dataclass(frozen=True)
class PassStrength:
    """One of the network's adapters, as an opened model shows it."""

    passes: LoraPasses
    name: str

    @property
    def strength(self) -> float:
        return self.passes.lora.strengths[self.name]

    def set_strength(self, strength: float) -> None:
        self.passes.set_strengths({self.name: strength})
