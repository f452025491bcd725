"""The size of a result: a factor, or a size to reach. Sizes are (height, width) in px."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, Protocol

from ..errors import UserError

MIN_SIDE = 8
MIN_SCALE, MAX_SCALE = 1.0, 8.0

Size = tuple[int, int]
SideKind = Literal["longest", "shortest", "width", "height"]
PRESETS = {"1080p": (1920, 1080), "1440p": (2560, 1440), "4k": (3840, 2160), "8k": (7680, 4320)}


class Target(Protocol):
    """How large a result should be, whatever the picture's own size."""

    def factor(self, height: int, width: int) -> float:
        """The result's side divided by the picture's, for a picture of this size."""
        ...


@dataclass(frozen=True)
class Side:
    """The longest or shortest side, the width or the height has this many px."""

    side: SideKind
    length: int

    def __str__(self) -> str:
        return (
            f"{self.side} {self.length} px"
            if self.side in ("width", "height")
            else f"{self.side} side {self.length} px"
        )

    def factor(self, height: int, width: int) -> float:
        sides = {"longest": max(height, width), "shortest": min(height, width), "width": width, "height": height}
        return self.length / sides[self.side]


@dataclass(frozen=True)
class Megapixels:
    """The result has about this many million px."""

    megapixels: float

    def __str__(self) -> str:
        return f"{self.megapixels:g} megapixels"

    def factor(self, height: int, width: int) -> float:
        return math.sqrt(self.megapixels * 1e6 / (height * width))


@dataclass(frozen=True)
class Box:
    """The largest result that fits a screen of this size, turned like the picture."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"fit {self.width} x {self.height} px"

    def factor(self, height: int, width: int) -> float:
        long, short = max(self.width, self.height), min(self.width, self.height)
        return min(long / max(height, width), short / min(height, width))

    @classmethod
    def parse(cls, text: str) -> Box:
        """From `4k` and the other presets, or WIDTHxHEIGHT. Raises UserError for other texts."""
        if text.lower() in PRESETS:
            return cls(*PRESETS[text.lower()])
        if match := re.fullmatch(r"([1-9]\d{0,5})[x\u00d7]([1-9]\d{0,5})", text.strip().lower()):
            return cls(int(match[1]), int(match[2]))
        raise UserError(f"{text!r} is not a size: choose {', '.join(PRESETS)} or WIDTHxHEIGHT, such as 3840x2160.")


@dataclass(frozen=True)
class Factor:
    """Both sides times this number, 1 to 8."""

    scale: float

    def __str__(self) -> str:
        return f"{self.scale:g}"

    def factor(self, height: int, width: int) -> float:
        if not MIN_SCALE <= self.scale <= MAX_SCALE:
            raise UserError(f"Scale {self.scale:g} is out of range: choose one from {MIN_SCALE:g} to {MAX_SCALE:g}.")
        return self.scale


def size_for(target: Target, height: int, width: int) -> Size:
    """The result's size for a picture: both sides times the same factor, rounded, and at least 1 px.

    A picture that is larger than its target has a factor under 1. Raises UserError for a scale out of bounds, for a
    picture under 8 px a side, and for a result of more than 8 times the picture's size.
    """
    factor = target.factor(height, width)
    if min(height, width) < MIN_SIDE:
        raise UserError(f"The picture is {width} x {height} px: it needs at least {MIN_SIDE} px a side.")
    if factor > MAX_SCALE:
        raise UserError(
            f"For {target}, the picture of {width} x {height} px must become {factor:.3g} times as large, but at most "
            f"{MAX_SCALE:g} times is possible: choose a smaller size."
        )
    return max(1, round(factor * height)), max(1, round(factor * width))
