"""A loss against a grid of 4 px, which pixel shuffles leave in a result and perceptual networks hardly see."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..measures.artifacts import phase_means, unevenness

SMOOTH = 5  # px of the mean that fine structure is told from
SQUARE = 16  # px; in each such square fine structure counts as much, in a sky as in a meadow
FLOOR = 0.5 / 255


def grid_loss(result: Tensor, hr: Tensor) -> Tensor:
    """How much more the fine structure of results (B, 3, H, W) depends on the place modulo 4 px than HR's.

    With m_ij the mean of fine structure over all places (y, x) = (i, j) modulo 4: the deviation of
    m_ij(result) / m_ij(HR) over their mean. 0: a result has the same share everywhere as HR.
    """
    return unevenness(phase_means(_shares(result)) / phase_means(_shares(hr)))


def _shares(pictures: Tensor) -> Tensor:
    """Fine structure |x - mean5(x)| relative to its square's, (B, 1, h, w), h and w multiples of 16."""
    border = SMOOTH // 2
    fine = (
        (pictures[..., border:-border, border:-border] - F.avg_pool2d(pictures, SMOOTH, 1)).abs().mean(1, keepdim=True)
    )
    height, width = (side // SQUARE * SQUARE for side in fine.shape[-2:])
    fine = fine[..., :height, :width]
    local = F.interpolate(F.avg_pool2d(fine, SQUARE), scale_factor=SQUARE, mode="nearest")
    return (fine + FLOOR) / (local + FLOOR)
