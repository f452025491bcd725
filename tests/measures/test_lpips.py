"""LPIPS's distance, against its formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onestep_sr.sr_models.measures import lpips as features


def test_feature_distance_equals_its_formula() -> None:
    maps = [torch.randn(2, c, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(c)) for c in (3, 4)]
    others = [
        torch.randn(2, c, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(9 * c)) for c in (3, 4)
    ]
    weights = [torch.rand(c, dtype=torch.float64, generator=torch.Generator().manual_seed(c)) for c in (3, 4)]
    expected = 0.0
    for a, b, w in zip(maps, others, weights, strict=True):
        u, v = (x.numpy() / np.sqrt((x.numpy() ** 2).sum(1, keepdims=True)) for x in (a, b))
        expected += (w.numpy().reshape(1, -1, 1, 1) * (u - v) ** 2).sum(1).mean()
    assert float(features.feature_distance(maps, others, weights)) == pytest.approx(expected, rel=1e-9)
