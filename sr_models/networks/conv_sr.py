"""A small x4 network: residual blocks on the LR grid, two pixel shuffles, two convolutions on the HR grid.

The blocks have no normalisation, as in EDSR (arXiv 1707.02921), and the network learns the difference to bicubic
enlargement. It sees neither noise nor positions: a picture shifted by n LR pixels gives the result shifted by 4 n.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE = 4
SLOPE = 0.1


@dataclass(frozen=True)
class ConvSRConfig:
    """`channels` of the residual blocks, half of them after the first shuffle, a quarter after the second."""

    channels: int = 64
    blocks: int = 16

    @property
    def values_per_pixel(self) -> int:
        """How many values per LR pixel exist at once: the picture, and around the last shuffle a map of 4 `channels`
        three times, beside the first map."""
        return 13 * self.channels + 3


class ConvSR(nn.Module):
    """(B, 3, h, w) in [0, 1] -> (B, 3, 4h, 4w), not clamped."""

    def __init__(self, config: ConvSRConfig):
        super().__init__()
        self.config, width = config, config.channels
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(config.blocks))
        self.fuse = nn.Conv2d(2 * width, width, 1)
        self.shuffled = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 3, padding=1) for inputs, outputs in ((width, 2 * width), (width // 2, width))
        )
        self.refine = nn.Conv2d(width // 4, width // 4, 3, padding=1)
        self.out = nn.Conv2d(width // 4, 3, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, image: Tensor) -> Tensor:
        first = self.stem(image)
        hidden = first
        for block in self.blocks:
            hidden = block(hidden)
        hidden = self.fuse(torch.cat([first, hidden], dim=1))
        for convolution in self.shuffled:
            hidden = F.leaky_relu(F.pixel_shuffle(convolution(hidden), 2), SLOPE)
        hidden = F.leaky_relu(self.refine(hidden), SLOPE)
        enlarged = F.interpolate(image.float(), scale_factor=SCALE, mode="bicubic", align_corners=False)
        return enlarged + self.out(hidden).to(enlarged.dtype)


def interpolated(first: ConvSR, second: ConvSR, share: float) -> ConvSR:
    """A network with the weights (1 - share) first + share second, on their device (ESRGAN, arXiv 1809.00219, 3.4)."""
    with torch.device("meta"):
        network = ConvSR(first.config)
    others = dict(second.named_parameters())
    weights = {name: torch.lerp(p.detach(), others[name].detach(), share) for name, p in first.named_parameters()}
    network.load_state_dict(weights, assign=True)
    return network.requires_grad_(False)


class ResidualBlock(nn.Module):
    """x + conv(act(conv(x)))."""

    def __init__(self, channels: int):
        super().__init__()
        self.inner = nn.Conv2d(channels, channels, 3, padding=1)
        self.outer = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():  # a block starts near the identity, so that depth costs no stability
            self.outer.weight.mul_(0.1)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.outer(F.leaky_relu(self.inner(hidden), SLOPE))
