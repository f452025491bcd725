"""Random numbers of a training step, with one generator per sample.

They do not depend on how samples are distributed over batches, processes and machines: two processes get the same
numbers as one process with twice the batch, and a resumed run the same as one that never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Generator, Tensor


class Draws:
    """Random numbers for the samples with these indices; each call advances every sample's generator.

    Results are on `device`; their values do not depend on it.
    """

    def __init__(self, seed: int, samples: Sequence[int], device: torch.device | str = "cpu"):
        self.generators = [_generator(seed, sample) for sample in samples]
        self.device = device

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, (B, *shape)."""
        return self._stack(lambda generator: torch.randn(shape, generator=generator))

    def integers(self, low: int, high: int) -> Tensor:
        """Uniform integers in low .. high - 1, (B,)."""
        return self._stack(lambda generator: torch.randint(low, high, (), generator=generator))

    def _stack(self, draw: Callable[[Generator], Tensor]) -> Tensor:
        return torch.stack([draw(generator) for generator in self.generators]).to(self.device)


def _generator(seed: int, sample: int) -> Generator:
    words = np.random.SeedSequence((seed, sample)).generate_state(1, np.uint64)
    return Generator().manual_seed(int(words[0] >> 1))
