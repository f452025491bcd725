"""Pretrained networks that this project measures with and never ships: finding and reading their files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoints.weights_file import read_weights
from ..errors import UserError

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of RGB in [0, 1]


def normalised(image: Tensor) -> Tensor:
    """RGB (B, 3, H, W) in [0, 1] as torchvision's networks take it."""
    mean, deviation = (image.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    return (image - mean) / deviation


def search(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """The files in the folder and its subfolders that match one of the patterns, in the order of the patterns."""
    return [path for name in names for path in sorted(folder.rglob(name))]


def find(folder: Path, names: tuple[str, ...], what: str) -> Path:
    """The first file that `search` finds. Raises UserError if there is none."""
    found = search(folder, names)
    if not found:
        raise UserError(f"{folder} does not contain {what} ({' or '.join(names)}): copy the file there.")
    return found[0]


@torch.no_grad()
def fill_convolutions(convolutions: Iterable[nn.Module], numbers: Iterable[int], file: Path, what: str) -> None:
    """Copy `features.N.weight` and `features.N.bias` into the convolutions. Raises UserError if they do not fit."""
    tensors = read_weights(file).tensors
    try:
        for convolution, number in zip(convolutions, numbers, strict=True):
            for part in ("weight", "bias"):
                getattr(convolution, part).copy_(tensors[f"features.{number}.{part}"])
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{file.name} does not contain {what} ({error}): download it again.") from error
