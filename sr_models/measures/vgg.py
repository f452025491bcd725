"""VGG16's convolutions (arXiv 1409.1556), whose feature maps LPIPS, DISTS and perceptual losses compare."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from .pretrained import fill_convolutions, find, normalised

FILES = ("vgg16*.safetensors", "vgg16*.pth")
# torchvision's numbers of the convolutions, stage by stage; there is pooling between stages.
STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))

Pooling = Callable[[Tensor], Tensor]


class Vgg16(nn.Module):
    """RGB (B, 3, H, W) in [0, 1] -> the maps after each stage's last ReLU: relu1_2, 2_2, 3_3, 4_3 and 5_3."""

    widths = (64, 128, 256, 512, 512)

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        inputs = 3
        for width, numbers in zip(self.widths, STAGES, strict=True):
            sizes = [inputs, *[width] * len(numbers)]
            self.stages.append(nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes)))
            inputs = width

    @classmethod
    def load(cls, folder: Path) -> Vgg16:
        """Load torchvision's VGG16 (`vgg16*.pth` or `.safetensors`) from a folder.

        Raises UserError if it is missing or broken.
        """
        network = cls()
        convolutions = chain.from_iterable(network.stages)  # pyright: ignore[reportArgumentType]
        fill_convolutions(convolutions, chain(*STAGES), find(folder, FILES, "torchvision's VGG16"), "VGG16")
        return network

    def forward(self, image: Tensor, pooling: Pooling | None = None) -> list[Tensor]:
        """`pooling` is applied between stages; None takes VGG's own, the maximum of 2 x 2."""
        pool = pooling or (lambda hidden: F.max_pool2d(hidden, 2))
        hidden, maps = normalised(image), []
        for number, stage in enumerate(self.stages):
            hidden = pool(hidden) if number else hidden
            for convolution in stage:  # pyright: ignore[reportGeneralTypeIssues]
                hidden = F.relu(convolution(hidden))
            maps.append(hidden)
        return maps
