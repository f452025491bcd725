"""LPIPS: the distance between two pictures in the features of a network (arXiv 1801.03924)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.weights_file import read_weights
from ..errors import UserError
from . import alexnet, vgg
from .alexnet import AlexNet
from .pretrained import find, search
from .vgg import Vgg16

NetworkName = Literal["alex", "vgg"]
LINEAR_FILES: dict[NetworkName, tuple[str, ...]] = {
    "alex": ("alex.pth", "LPIPS*alex*.pth"),
    "vgg": ("vgg.pth", "LPIPS*vgg*.pth"),
}
NETWORK_FILES: dict[NetworkName, tuple[str, ...]] = {"alex": alexnet.FILES, "vgg": vgg.FILES}


def feature_distance(
    ours: Iterable[Tensor], theirs: Iterable[Tensor], weights: Iterable[Tensor] | None = None
) -> Tensor:
    """LPIPS's distance (equation 1): sum over maps of mean over positions of sum over channels of w (u - v)^2, with u
    and v normalised over channels. `weights` are (C,) for each map, or 1 if not given."""
    pairs = [(F.normalize(u, dim=1, eps=1e-10), F.normalize(v, dim=1, eps=1e-10)) for u, v in zip(ours, theirs)]  # noqa: B905
    scales = [1.0] * len(pairs) if weights is None else [w[None, :, None, None] for w in weights]
    return sum(((w * (u - v) ** 2).sum(dim=1).mean() for w, (u, v) in zip(scales, pairs, strict=True)), torch.zeros(()))


class Lpips(nn.Module):
    """LPIPS v0.1: two pictures (B, 3, H, W) in [-1, 1] -> the mean distance of the batch, a scalar.

    On AlexNet it is the perceptual loss of TSD-SR, and the form that papers report.
    """

    def __init__(self, network: AlexNet | Vgg16):
        super().__init__()
        self.network = network
        self.weights = nn.ParameterList(torch.zeros(width) for width in network.widths)

    @classmethod
    def load(cls, folder: Path, network: NetworkName = "alex") -> Lpips:
        """Load torchvision's network and LPIPS's `alex.pth` or `vgg.pth` from a folder.

        Raises UserError if either is missing or broken.
        """
        made = cls(AlexNet.load(folder) if network == "alex" else Vgg16.load(folder))
        file = read_weights(find(folder, LINEAR_FILES[network], f"LPIPS's weights for {network}"))
        try:
            with torch.no_grad():
                for index, weight in enumerate(made.weights):
                    weight.copy_(file.tensors[f"lin{index}.model.1.weight"].flatten())
        except (KeyError, RuntimeError) as error:
            raise UserError(f"{file.name} does not contain LPIPS's weights ({error}): download it again.") from error
        return made.requires_grad_(False).eval()

    def forward(self, ours: Tensor, theirs: Tensor) -> Tensor:
        return feature_distance(self.network(ours / 2 + 0.5), self.network(theirs / 2 + 0.5), self.weights)

    def of_unit_range(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """The same for pictures in [0, 1]."""
        return self(ours * 2 - 1, theirs * 2 - 1)

    def against(self, theirs: Tensor) -> Callable[[Tensor], Tensor]:
        """`of_unit_range` as a function of `ours`, to compare several pictures with one."""
        features = list(self.network(theirs))
        return lambda ours: feature_distance(self.network(ours), features, self.weights)


def find_lpips(folder: Path | None) -> Lpips | None:
    """Load LPIPS on AlexNet from the given folder, or else from torch's cache; None if the cache does not contain it.

    Raises UserError if the given folder does not contain it.
    """
    if folder is not None:
        return Lpips.load(folder)
    cache = Path(torch.hub.get_dir())
    complete = all(search(cache, files["alex"]) for files in (NETWORK_FILES, LINEAR_FILES))
    return Lpips.load(cache) if complete else None
