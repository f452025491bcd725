"""The second phase of a network from picture to picture: detail as a person sees it.

It starts from the faithful weights, so that weights between both are valid networks too (network interpolation,
ESRGAN, arXiv 1809.00219, section 3.4).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..networks.conv_sr import SCALE, ConvSR
from .discriminator import UNetDiscriminator, players_losses
from .draws import Draws
from .grid import grid_loss
from .objective import Losses, ParameterGroup
from .perceptual import PerceptualLosses
from .picture_objective import PictureObjective


@dataclass(frozen=True)
class DetailWeights:
    """Weights of the losses, see `DetailedObjective`."""

    pixel: float = 1.0
    coarse: float = 2.0
    lpips: float = 0.5
    dists: float = 0.5
    adversarial: float = 0.05
    grid: float = 1.0
    chroma: float = 2.0


class DetailedObjective(PictureObjective):
    """pixel |x - y| + coarse |mean4(x) - small(y)| + lpips LPIPS(x, y) + dists DISTS(x, y) + adversarial L_G
    + grid L_grid(x, y) + chroma |c(x) - c(y)|, for the result x and HR y; and L_D for the discriminator
    (`players_losses`).

    mean4 are means over 4 x 4 px. small is halfway between mean4 and the bicubic reduction, of which most LR pictures
    are made. It keeps colours, and lets a result shrink back to its input. c is the difference of each channel from the
    mean of all three: the eye sees little detail in colour, so that made-up colours only show where there are none, as
    in a grey photograph.
    """

    def __init__(
        self, network: ConvSR, perceptual: PerceptualLosses, weights: DetailWeights, rates: tuple[float, float]
    ):
        """`rates` are the learning rates of the network and the discriminator."""
        super().__init__(network, rates[0])
        self.perceptual, self.weights, self.discriminator_rate = perceptual, weights, rates[1]
        self.discriminator = UNetDiscriminator()
        self.discriminator.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def groups(self) -> list[ParameterGroup]:
        weights = list(self.discriminator.parameters())
        return [*super().groups(), {"name": "discriminator", "params": weights, "lr": self.discriminator_rate}]

    def losses(self, result: Tensor, targets: dict[str, Tensor], draws: Draws) -> Losses:
        hr, weights = targets["hr"], asdict(self.weights)
        lpips, dists = self.perceptual(result, hr, draws)
        adversarial, discriminator = players_losses(self.discriminator, hr, result)
        terms = {
            "pixel": (result - hr).abs().mean(),
            "coarse": (F.avg_pool2d(result, SCALE) - shrunk(hr)).abs().mean(),
            "lpips": lpips,
            "dists": dists,
            "adversarial": adversarial,
            "grid": grid_loss(result, hr),
            "chroma": (chroma(result) - chroma(hr)).abs().mean(),
        }
        student = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        return {"loss": student + discriminator, "discriminator": discriminator, **terms}

    def settings(self) -> dict[str, Any]:
        mine = {"weights": asdict(self.weights), "discriminator_rate": self.discriminator_rate}
        return super().settings() | mine | {"window": self.perceptual.window, "every": self.perceptual.every}


def chroma(pictures: Tensor) -> Tensor:
    """Each channel's difference from the mean of all three: pictures (B, 3, H, W), zero where they are grey."""
    return pictures - pictures.mean(1, keepdim=True)


def shrunk(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) at a quarter of their sides: the mean of the reductions by area and by bicubic."""
    bicubic = F.interpolate(pictures, scale_factor=1 / SCALE, mode="bicubic", antialias=True)
    return (F.avg_pool2d(pictures, SCALE) + bicubic) / 2
