"""The draws of a training step."""

from __future__ import annotations

import torch
from onestep_sr.sr_models.training.draws import Draws


def test_draws_are_a_samples_own() -> None:
    together, apart = Draws(7, [4, 9]), [Draws(7, [4]), Draws(7, [9])]
    for draw in (lambda d: d.normal(2, 3), lambda d: d.integers(50, 950), lambda d: d.normal()):
        assert torch.equal(draw(together), torch.cat([draw(one) for one in apart]))
    assert not torch.equal(Draws(7, [4]).normal(8), Draws(8, [4]).normal(8))
