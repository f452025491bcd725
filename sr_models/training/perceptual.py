"""Perceptual losses of a network from picture to picture: LPIPS and DISTS, at places that change from step to step."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..measures.dists import Dists
from ..measures.lpips import Lpips
from .draws import Draws

SHIFTS = 8  # px; LPIPS's AlexNet has a stride of 4, then pools


class PerceptualLosses(nn.Module):
    """Distances of pictures (B, 3, H, W) in [0, 1] as scalars: LPIPS of whole pictures, DISTS of windows of some.

    Both networks stride over pixels. At a fixed place, a student could hide a pixel grid from them, so the pictures
    are cut at a random offset first.

    Args:
        folder: contains the weights of both; see `Lpips.load` and `Dists.load`.
        window: side of DISTS's windows in px.
        every: DISTS sees one of this many pictures of the batch, because VGG16 costs more than all else.
    """

    def __init__(self, folder: Path, window: int = 128, every: int = 2):
        super().__init__()
        self.lpips, self.dists = Lpips.load(folder), Dists.load(folder)
        self.window, self.every = window, every
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, result: Tensor, hr: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        distance = self.lpips.of_unit_range(*self._shifted(result, hr, draws))
        ours, theirs = self._windows(result, hr, draws)
        with torch.no_grad():
            target = self.dists.features(theirs)
        return distance, self.dists.distance(self.dists.features(ours), target).mean()

    def _shifted(self, result: Tensor, hr: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        top, left = (int(draws.integers(0, SHIFTS)[0]) for _ in range(2))
        return result[..., top:, left:], hr[..., top:, left:]

    def _windows(self, result: Tensor, hr: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        room = [max(0, side - self.window) for side in result.shape[-2:]]
        top, left = (int(draws.integers(0, spare + 1)[0]) for spare in room)
        first = int(draws.integers(0, min(self.every, len(result)))[0])
        windows = [
            picture[first :: self.every, :, top : top + self.window, left : left + self.window]
            for picture in (result, hr)
        ]
        return windows[0], windows[1]
