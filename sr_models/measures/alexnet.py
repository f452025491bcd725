"""AlexNet's convolutions (torchvision's form, arXiv 1404.5997), whose feature maps LPIPS compares."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from .pretrained import fill_convolutions, find, normalised

FILES = ("alexnet*.pth",)
# For each convolution: inputs, outputs, kernel, stride, padding, and whether pooling comes before it.
CONVOLUTIONS = (
    (3, 64, 11, 4, 2, False),
    (64, 192, 5, 1, 2, True),
    (192, 384, 3, 1, 1, True),
    (384, 256, 3, 1, 1, False),
    (256, 256, 3, 1, 1, False),
)
NUMBERS = (0, 3, 6, 8, 10)  # torchvision's numbers of the convolutions


class AlexNet(nn.Module):
    """RGB (B, 3, H, W) in [0, 1] -> the maps after each of the five convolutions' ReLU."""

    widths = tuple(spec[1] for spec in CONVOLUTIONS)

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(*spec[:5]) for spec in CONVOLUTIONS)

    @classmethod
    def load(cls, folder: Path) -> AlexNet:
        """Load torchvision's AlexNet (`alexnet*.pth`) from a folder. Raises UserError if it is missing or broken."""
        network = cls()
        fill_convolutions(network.convolutions, NUMBERS, find(folder, FILES, "torchvision's AlexNet"), "AlexNet")
        return network

    def forward(self, image: Tensor) -> list[Tensor]:
        hidden, maps = normalised(image), []
        for convolution, spec in zip(self.convolutions, CONVOLUTIONS, strict=True):
            hidden = F.relu(convolution(F.max_pool2d(hidden, 3, 2) if spec[5] else hidden))
            maps.append(hidden)
        return maps
