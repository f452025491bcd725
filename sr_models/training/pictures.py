"""Training pairs for a picture-to-picture network: pictures in memory, cut, shrunk, degraded and cut again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..canvas.degradation import Degradation
from ..errors import UserError
from ..files.listing import list_images
from .data import enlarged_to, random_window, to_tensor


@dataclass(frozen=True)
class PairConfig:
    """How a pair is cut. Sides are in HR px, multiples of the scale.

    Attributes:
        crop: side of the pair.
        margin: the degradation works on a window that is larger by this much, and the pair is cut from it at a random
            LR pixel, so that JPEG blocks can begin anywhere.
        grey: share of pairs without colour.
        shrunk: share of pairs whose HR is a larger window shrunk by up to a half, which makes photos sharper.
    """

    crop: int = 192
    margin: int = 32
    grey: float = 0.05
    shrunk: float = 0.25
    degradation: Degradation = field(default_factory=Degradation)


class PicturePairs(Dataset[dict[str, Tensor]]):
    """Pair number i, without end, is a pure function of (seed, i).

    Each item: `hr` (3, crop, crop) and `lr` (3, crop/4, crop/4), uint8. All pictures are decoded once and kept in
    memory. Raises UserError for a folder without pictures and for one that cannot be read.
    """

    def __init__(self, folder: Path, config: PairConfig, seed: int):
        self.config, self.seed = config, seed
        smallest = config.crop + config.margin
        self.pictures = [np.asarray(enlarged_to(_open(file), smallest)) for file in list_images(folder)]

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, number))
        hr = self._window(rng)
        if rng.random() < self.config.grey:
            hr = hr.convert("L").convert("RGB")
        lr = self.config.degradation(hr, rng)
        scale, side = self.config.degradation.scale, self.config.crop
        left, top = (int(rng.integers(self.config.margin // scale + 1)) * scale for _ in range(2))
        hr = hr.crop((left, top, left + side, top + side))
        lr = lr.crop((left // scale, top // scale, (left + side) // scale, (top + side) // scale))
        return {"hr": to_tensor(hr), "lr": to_tensor(lr)}

    def _window(self, rng: Generator) -> Image.Image:
        picture = Image.fromarray(self.pictures[rng.integers(len(self.pictures))])
        side = self.config.crop + self.config.margin
        wanted = side
        if rng.random() < self.config.shrunk:
            wanted = min(*picture.size, int(side * rng.uniform(1, 2)))
        window = random_window(picture, wanted, rng).cut(picture)
        return window.resize((side, side), Image.Resampling.BICUBIC) if wanted > side else window

    def settings(self) -> dict[str, Any]:
        """What must match to resume a run."""
        return {"seed": self.seed, "pictures": len(self.pictures), **asdict(self.config)}


def _open(file: Path) -> Image.Image:
    try:
        return Image.open(file).convert("RGB")
    except OSError as error:
        raise UserError(f"{file} cannot be read as a picture ({error}): repair or remove it.") from error
