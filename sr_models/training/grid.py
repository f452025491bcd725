"""A loss against a grid of 4 px, which pixel shuffles leave in a result and perceptual networks hardly see."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..networks.conv_sr import SCALE

SMOOTH = 5  # px of the mean that fine structure is told from
SQUARE = 16  # px; in each such square fine structure counts as much, in a sky as in a meadow
FLOOR = 0.5 / 255


def grid_loss(result: Tensor, hr: Tensor) -> Tensor:
    """How much more the fine structure of results (B, 3, H, W) depends on the place modulo 4 px than HR's.

    With m_ij the mean of fine structure over all places (y, x) = (i, j) modulo 4: the deviation of
    m_ij(result) / m_ij(HR) over their mean. 0: a result has the same share everywhere as HR.
    """
    ratios = _phases(result) / _phases(hr)
    return ratios.std(correction=0) / ratios.mean()


def _phases(pictures: Tensor) -> Tensor:
    """The mean of fine structure |x - mean5(x)|, relative to its square's, for each place modulo 4 px: (4, 4)."""
    border = SMOOTH // 2
    fine = (
        (pictures[..., border:-border, border:-border] - F.avg_pool2d(pictures, SMOOTH, 1)).abs().mean(1, keepdim=True)
    )
    height, width = (side // SQUARE * SQUARE for side in fine.shape[-2:])
    fine = fine[..., :height, :width]
    local = F.interpolate(F.avg_pool2d(fine, SQUARE), scale_factor=SQUARE, mode="nearest")
    share = (fine + FLOOR) / (local + FLOOR)
    return share.reshape(-1, height // SCALE, SCALE, width // SCALE, SCALE).mean((0, 1, 3))
