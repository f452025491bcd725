"""The random numbers of a training step, a generator for every sample.

How samples are spread over batches, processes and machines changes none of them: two processes see what one with
twice the batch sees, and a run that goes on sees what one that never stopped would have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Generator, Tensor


class Draws:
    """Draws for the samples with these numbers; each call advances every sample's generator.

    Results lie on `device`; the numbers are the same on every kind.
    """

    def __init__(self, seed: int, samples: Sequence[int], device: torch.device | str = "cpu"):
        self.generators = [_generator(seed, sample) for sample in samples]
        self.device = device

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, (B, *shape)."""
        return self._stack(lambda generator: torch.randn(shape, generator=generator))

    def integers(self, low: int, high: int) -> Tensor:
        """Uniform in low .. high - 1, (B,)."""
        return self._stack(lambda generator: torch.randint(low, high, (), generator=generator))

    def _stack(self, draw: Callable[[Generator], Tensor]) -> Tensor:
        return torch.stack([draw(generator) for generator in self.generators]).to(self.device)


def _generator(seed: int, sample: int) -> Generator:
    words = np.random.SeedSequence((seed, sample)).generate_state(1, np.uint64)
    return Generator().manual_seed(int(words[0] >> 1))
