"""DISTS: structure and texture similarity of two pictures in VGG16's features (arXiv 2004.07728)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.weights_file import read_weights
from ..errors import UserError
from .pretrained import find
from .vgg import Vgg16

FILES = ("dists*.safetensors", "DISTS*.pt", "weights.pt")
CHANNELS = (3, *Vgg16.widths)
STABILITY = 1e-6  # c1 and c2 of equations 4 and 5


class Dists(nn.Module):
    """Two pictures (B, 3, H, W) in [0, 1] -> (B,): 0 for equal pictures, larger for less similar ones."""

    alpha: Tensor
    beta: Tensor

    def __init__(self, vgg: Vgg16, alpha: Tensor, beta: Tensor):
        super().__init__()
        self.vgg = vgg
        self.register_buffer("alpha", alpha.flatten())
        self.register_buffer("beta", beta.flatten())

    @classmethod
    def load(cls, folder: Path) -> Dists:
        """Load torchvision's VGG16, and DISTS's alpha and beta, from a folder.

        Raises UserError if either is missing or broken.
        """
        file = read_weights(find(folder, FILES, "DISTS's alpha and beta"))
        alpha, beta = (file.tensors.get(name, torch.zeros(0)) for name in ("alpha", "beta"))
        if {alpha.numel(), beta.numel()} != {sum(CHANNELS)}:
            raise UserError(f"{file.name} does not contain DISTS's alpha and beta: download it again.")
        return cls(Vgg16.load(folder), alpha.float(), beta.float()).requires_grad_(False).eval()

    def features(self, image: Tensor) -> list[Tensor]:
        """The picture itself and VGG16's maps, with L2 pooling."""
        return [image, *self.vgg(image, l2_pooling)]

    def forward(self, ours: Tensor, theirs: Tensor) -> Tensor:
        return self.distance(self.features(ours), self.features(theirs))

    def against(self, theirs: Tensor) -> Callable[[Tensor], Tensor]:
        """The distance as a function of `ours`, to compare several pictures with one."""
        features = self.features(theirs)
        return lambda ours: self.distance(self.features(ours), features)

    def distance(self, ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        """1 - sum over channels of alpha l + beta s (equation 6) of two lists of `features`, (B,): l compares means, s
        covariances."""
        means, structures = [], []
        for x, y in ((x.float().flatten(2), y.float().flatten(2)) for x, y in zip(ours, theirs, strict=True)):
            x_mean, y_mean = x.mean(dim=2), y.mean(dim=2)
            x_variance, y_variance = x.var(dim=2, correction=0), y.var(dim=2, correction=0)
            covariance = (x * y).mean(dim=2) - x_mean * y_mean
            means.append((2 * x_mean * y_mean + STABILITY) / (x_mean**2 + y_mean**2 + STABILITY))
            structures.append((2 * covariance + STABILITY) / (x_variance + y_variance + STABILITY))
        total = self.alpha.sum() + self.beta.sum()
        similarity = (torch.cat(means, dim=1) * self.alpha + torch.cat(structures, dim=1) * self.beta).sum(dim=1)
        return 1 - similarity / total


def l2_pooling(hidden: Tensor) -> Tensor:
    """The root of the Hann-weighted mean of squares over 3 x 3, at every second pixel (equation 1).

    [1 2 1] is [1 1] * [1 1]: two means of 2 x 2, which are many times faster than a convolution per channel.
    """
    squares = F.avg_pool2d(F.pad(hidden**2, (1, 1, 1, 1)), 2, stride=1)
    return (F.avg_pool2d(squares, 2) + 1e-12).sqrt()
