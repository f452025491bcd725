"""Training pairs from a folder of pictures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..canvas.degradation import Degradation
from ..errors import UserError
from ..files.listing import list_images


class CropPairs(Dataset[dict[str, Tensor]]):
    """An endless dataset: pair i is a pure function of (seed, i), so resuming needs only the next index.

    Each item: `hr` (3, crop, crop) and `lr` (3, crop/scale, crop/scale), uint8.
    """

    def __init__(self, folder: Path, crop: int, degradation: Degradation, seed: int):
        self.files = list_images(folder)
        self.crop, self.degradation, self.seed = crop, degradation, seed

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, number))
        hr = random_crop(self._open(rng), self.crop, rng)
        lr = self.degradation(hr, rng)
        return {"hr": to_tensor(hr), "lr": to_tensor(lr)}

    def settings(self) -> dict[str, Any]:
        """Settings that must match to resume a run."""
        return {"crop": self.crop, "seed": self.seed, "degradation": asdict(self.degradation)}

    def _open(self, rng: Generator) -> Image.Image:
        file = self.files[rng.integers(len(self.files))]
        try:
            return Image.open(file).convert("RGB")
        except OSError as error:
            raise UserError(f"{file} cannot be read as a picture ({error}): replace or remove it.") from error


@dataclass(frozen=True)
class Window:
    """A square region of a picture in px, and whether to flip and rotate it."""

    left: int
    top: int
    side: int
    flipped: bool
    turned: bool

    def cut(self, image: Image.Image, shrunk: int = 1) -> Image.Image:
        """Crop the region from the picture, or from a copy that is `shrunk` times smaller."""
        left, top, side = self.left // shrunk, self.top // shrunk, self.side // shrunk
        image = image.crop((left, top, left + side, top + side))
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flipped else image
        return image.transpose(Image.Transpose.ROTATE_90) if self.turned else image


def random_window(image: Image.Image, side: int, rng: Generator, unit: int = 1) -> Window:
    """A random square of `side` px inside the picture, positioned at multiples of `unit` px."""
    left, top = (unit * int(rng.integers((length - side) // unit + 1)) for length in image.size)
    return Window(left, top, side, flipped=rng.random() < 0.5, turned=rng.random() < 0.5)


def random_crop(image: Image.Image, size: int, rng: Generator) -> Image.Image:
    """A randomly placed, flipped and rotated square of `size` px; small pictures are enlarged first."""
    image = enlarged_to(image, size)
    return random_window(image, size, rng).cut(image)


def enlarged_to(image: Image.Image, size: int) -> Image.Image:
    """Enlarge the picture bicubically if its shorter side is under `size` px."""
    short = min(image.size)
    if short >= size:
        return image
    return image.resize([max(size, round(side * size / short)) for side in image.size], Image.Resampling.BICUBIC)


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
