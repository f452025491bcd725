"""LPIPS: the distance between two pictures in the features of a network.

Pictures are (B, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.weights_file import read_weights
from ..errors import UserError

ALEXNET_FILES, LINEAR_FILES = ("alexnet*.pth",), ("alex.pth", "LPIPS*alex*.pth")
# For each of AlexNet's convolutions: inputs, outputs, kernel, stride, padding, and whether pooling comes before it.
ALEXNET = (
    (3, 64, 11, 4, 2, False),
    (64, 192, 5, 1, 2, True),
    (192, 384, 3, 1, 1, True),
    (384, 256, 3, 1, 1, False),
    (256, 256, 3, 1, 1, False),
)
ALEXNET_NAMES = ("features.0", "features.3", "features.6", "features.8", "features.10")


def feature_distance(
    ours: Iterable[Tensor], theirs: Iterable[Tensor], weights: Iterable[Tensor] | None = None
) -> Tensor:
    """LPIPS's distance (arXiv 1801.03924, equation 1): sum over maps of mean over positions of sum over channels of
    w (u - v)^2, with u and v normalised over channels. `weights` are (C,) for each map, or 1 if not given."""
    pairs = [(F.normalize(u, dim=1, eps=1e-10), F.normalize(v, dim=1, eps=1e-10)) for u, v in zip(ours, theirs)]  # noqa: B905
    scales = [1.0] * len(pairs) if weights is None else [w[None, :, None, None] for w in weights]
    return sum(((w * (u - v) ** 2).sum(dim=1).mean() for w, (u, v) in zip(scales, pairs, strict=True)), torch.zeros(()))


class Lpips(nn.Module):
    """LPIPS v0.1 on AlexNet, the perceptual loss of TSD-SR."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(*spec[:5]) for spec in ALEXNET)
        self.weights = nn.ParameterList(torch.zeros(spec[1]) for spec in ALEXNET)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

    @classmethod
    def load(cls, folder: Path) -> Lpips:
        """Load torchvision's AlexNet and LPIPS's `alex.pth` from a folder.

        Raises UserError if either is missing or broken.
        """
        made = cls()
        network, linear = (read_weights(_find(folder, names)).tensors for names in (ALEXNET_FILES, LINEAR_FILES))
        try:
            with torch.no_grad():
                for index, name in enumerate(ALEXNET_NAMES):
                    made.convolutions[index].load_state_dict({k: network[f"{name}.{k}"] for k in ("weight", "bias")})
                    made.weights[index].copy_(linear[f"lin{index}.model.1.weight"].flatten())
        except (KeyError, RuntimeError) as error:
            raise UserError(f"{folder} does not contain LPIPS on AlexNet ({error}): download it again.") from error
        return made.requires_grad_(False).eval()

    def features(self, image: Tensor) -> list[Tensor]:
        hidden, maps = (image - self.shift) / self.scale, []
        for convolution, spec in zip(self.convolutions, ALEXNET, strict=True):
            hidden = F.relu(convolution(F.max_pool2d(hidden, 3, 2) if spec[5] else hidden))
            maps.append(hidden)
        return maps

    def forward(self, ours: Tensor, theirs: Tensor) -> Tensor:
        return feature_distance(self.features(ours), self.features(theirs), self.weights)


def find_lpips(folder: Path | None) -> Lpips | None:
    """Load LPIPS from the given folder, or else from torch's cache; None if the cache does not contain it.

    Raises UserError if the given folder does not contain it.
    """
    if folder is not None:
        return Lpips.load(folder)
    cache = Path(torch.hub.get_dir())
    return Lpips.load(cache) if all(_search(cache, names) for names in (ALEXNET_FILES, LINEAR_FILES)) else None


def _find(folder: Path, names: tuple[str, ...]) -> Path:
    found = _search(folder, names)
    if not found:
        raise UserError(
            f"{folder} does not contain {' or '.join(names)}: copy torchvision's AlexNet and LPIPS's alex.pth there."
        )
    return found[0]


def _search(folder: Path, names: tuple[str, ...]) -> list[Path]:
    return sorted(path for name in names for path in folder.rglob(name))
