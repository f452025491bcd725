"""Training pairs for a picture-to-picture network: pictures in memory, cut, shrunk, degraded and cut again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
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
        plain: share of pairs of one colour or a gradient, without damage, on which nothing must appear.
    """

    crop: int = 192
    margin: int = 32
    grey: float = 0.05
    shrunk: float = 0.25
    plain: float = 0.02
    degradation: Degradation = field(default_factory=Degradation)


class PicturePairs(Dataset[dict[str, Tensor]]):
    """Pair number i, without end, is a pure function of (seed, i).

    Each item: `hr` (3, crop, crop) and `lr` (3, crop/4, crop/4), uint8. All pictures are decoded once and kept in
    memory. With `teacher`, a folder that contains a teacher's x4 result for each picture, made from the picture after
    Pillow's bicubic reduction, under the same name (any ending): each item also has `teacher` (3, crop, crop), the
    same window of that result. It is HR itself for a window that was shrunk, of which the teacher has no result.

    Raises UserError for a folder without pictures, for a picture that cannot be read, and for a teacher's result that
    is missing or has another size.
    """

    def __init__(self, folder: Path, config: PairConfig, seed: int, teacher: Path | None = None):
        self.config, self.seed = config, seed
        smallest, files = config.crop + config.margin, list_images(folder)
        opened = [_open(file) for file in files]
        self.pictures = [np.asarray(enlarged_to(picture, smallest)) for picture in opened]
        self.results: list[np.ndarray] = []
        if teacher is not None:
            found = {file.stem: file for file in list_images(teacher)}
            results = (_result(found, file, picture) for file, picture in zip(files, opened, strict=True))
            self.results = [np.asarray(enlarged_to(result, smallest)) for result in results]

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, number))
        scale, side = self.config.degradation.scale, self.config.crop
        if rng.random() < self.config.plain:
            return self._plain(side, side // scale, rng)
        targets = self._windows(rng)
        if rng.random() < self.config.grey:
            targets = {name: picture.convert("L").convert("RGB") for name, picture in targets.items()}
        lr = self.config.degradation(targets["hr"], rng)
        left, top = (int(rng.integers(self.config.margin // scale + 1)) * scale for _ in range(2))
        lr = lr.crop((left // scale, top // scale, (left + side) // scale, (top + side) // scale))
        box = (left, top, left + side, top + side)
        return {name: to_tensor(picture.crop(box)) for name, picture in targets.items()} | {"lr": to_tensor(lr)}

    def _windows(self, rng: Generator) -> dict[str, Image.Image]:
        """HR, and the teacher's result if there is one, before the margin is cut off."""
        index = int(rng.integers(len(self.pictures)))
        picture = Image.fromarray(self.pictures[index])
        side = self.config.crop + self.config.margin
        wanted = side
        if rng.random() < self.config.shrunk:
            wanted = min(*picture.size, int(side * rng.uniform(1, 2)))
        window = random_window(picture, wanted, rng)
        hr = window.cut(picture)
        hr = hr.resize((side, side), Image.Resampling.BICUBIC) if wanted > side else hr
        if not self.results:
            return {"hr": hr}
        return {"hr": hr, "teacher": hr if wanted > side else window.cut(Image.fromarray(self.results[index]))}

    def _plain(self, side: int, small: int, rng: Generator) -> dict[str, Tensor]:
        """A gradient between two colours, which are equal in half the cases, from side to side."""
        first, last = rng.uniform(0, 255, size=(2, 3))
        last = first if rng.random() < 0.5 else last
        if rng.random() < 0.5:
            first, last = first.mean(), last.mean()  # grey
        down = rng.random() < 0.5

        def drawn(length: int) -> Tensor:
            share = ((np.arange(length) + 0.5) / length)[:, None, None]
            picture = np.broadcast_to(first + share * (last - first), (length, length, 3)).round().astype(np.uint8)
            return torch.from_numpy((picture if down else picture.swapaxes(0, 1)).transpose(2, 0, 1).copy())

        hr = drawn(side)
        return {"hr": hr, "lr": drawn(small)} | ({"teacher": hr} if self.results else {})

    def settings(self) -> dict[str, Any]:
        """What must match to resume a run."""
        counts = {"pictures": len(self.pictures)} | ({"results": len(self.results)} if self.results else {})
        return {"seed": self.seed, **counts, **asdict(self.config)}


def _result(found: dict[str, Path], file: Path, picture: Image.Image) -> Image.Image:
    if file.stem not in found:
        raise UserError(f"{file.name} has no teacher's result: store it as {file.stem}.png in the teacher's folder.")
    result = _open(found[file.stem])
    if result.size != picture.size:
        raise UserError(
            f"The teacher's result {found[file.stem]} has {result.width} x {result.height} px, but {file.name} has "
            f"{picture.width} x {picture.height} px: make it from this picture."
        )
    return result


def _open(file: Path) -> Image.Image:
    try:
        return Image.open(file).convert("RGB")
    except OSError as error:
        raise UserError(f"{file} cannot be read as a picture ({error}): repair or remove it.") from error
