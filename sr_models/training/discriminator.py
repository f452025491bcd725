"""A discriminator with a logit per pixel: a U-Net with spectral normalisation (Real-ESRGAN, arXiv 2107.10833, 3.4)."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

SLOPE = 0.2
FOLD = 2  # 2 x 2 px become channels, at a quarter of the cost; every phase of a pixel grid keeps weights of its own
MULTIPLE = 8 * FOLD


class UNetDiscriminator(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1], sides multiples of 16 -> logits (B, 1, H/2, W/2); high means real."""

    def __init__(self, width: int = 48):
        super().__init__()
        widths = [width, 2 * width, 4 * width, 4 * width]
        self.enter = nn.Conv2d(3 * FOLD**2, width, 3, padding=1)
        steps = list(pairwise(widths))
        self.down = nn.ModuleList(spectral_norm(nn.Conv2d(a, b, 4, 2, 1, bias=False)) for a, b in steps)
        self.up = nn.ModuleList(spectral_norm(nn.Conv2d(b, a, 3, 1, 1, bias=False)) for a, b in reversed(steps))
        self.refine = spectral_norm(nn.Conv2d(width, width, 3, padding=1, bias=False))
        self.logit = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        hidden, skips = F.leaky_relu(self.enter(F.pixel_unshuffle(image * 2 - 1, FOLD)), SLOPE), []
        for layer in self.down:
            skips.append(hidden)
            hidden = F.leaky_relu(layer(hidden), SLOPE)
        for layer, skip in zip(self.up, reversed(skips), strict=True):
            enlarged = F.interpolate(hidden, scale_factor=2, mode="bilinear", align_corners=False)
            hidden = F.leaky_relu(layer(enlarged), SLOPE) + skip
        return self.logit(F.leaky_relu(self.refine(hidden), SLOPE))


def players_losses(discriminator: nn.Module, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """The generator's loss with the discriminator's weights as constants, and the discriminator's with the result as a
    constant, so that one backward pass serves both players (logistic loss, arXiv 1406.2661, non-saturating).

    L_G = mean softplus(-D(fake)); L_D = (mean softplus(-D(real)) + mean softplus(D(fake))) / 2.
    """
    constants = {name: weight.detach() for name, weight in discriminator.named_parameters()}
    generator = F.softplus(-torch.func.functional_call(discriminator, constants, (fake,)).float()).mean()
    on_real, on_fake = discriminator(real).float(), discriminator(fake.detach()).float()
    return generator, (F.softplus(-on_real).mean() + F.softplus(on_fake).mean()) / 2
