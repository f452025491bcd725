"""The size of a result: a factor, or a size to reach. Sizes are (height, width) in px."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, get_args

import numpy as np

from ..errors import UserError

MIN_SIDE = 8
MIN_SCALE, MAX_SCALE = 1.0, 8.0

Size = tuple[int, int]
SideKind = Literal["longest", "shortest", "width", "height"]
FACTOR, MEGAPIXELS, FIT = "factor", "megapixels", "fit"
PRESETS = {"1080p": (1920, 1080), "1440p": (2560, 1440), "4k": (3840, 2160), "8k": (7680, 4320)}

SIZES = (FACTOR, "longest side", "shortest side", "width", "height", MEGAPIXELS, *(f"{FIT} {name}" for name in PRESETS))
"""What a user interface offers; see `chosen_target`."""


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, of Python or numpy."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a real number, of Python or numpy."""
    return is_whole(value) or isinstance(value, (float, np.floating))


class Target(Protocol):
    """How large a result should be, whatever the picture's own size."""

    def factor(self, height: int, width: int) -> float:
        """The result's side divided by the picture's, for a picture of this size."""
        ...


@dataclass(frozen=True)
class Side:
    """The longest or shortest side, the width or the height has this many px. Raises UserError for other sides, and
    for lengths under 1."""

    side: SideKind
    length: int

    def __post_init__(self) -> None:
        if self.side not in get_args(SideKind):
            raise UserError(f"Side {self.side!r} is unknown: choose one of {', '.join(get_args(SideKind))}.")
        if not is_whole(self.length) or self.length < 1:
            raise UserError(f"A side of {self.length!r} px is not possible: choose a whole number from 1.")

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
    """The result has about this many million px. Raises UserError for what is no finite number over 0."""

    megapixels: float

    def __post_init__(self) -> None:
        if not is_number(self.megapixels) or not 0 < self.megapixels < math.inf:
            raise UserError(f"{self.megapixels!r} megapixels are not possible: choose a number over 0.")

    def __str__(self) -> str:
        return f"{self.megapixels:g} megapixels"

    def factor(self, height: int, width: int) -> float:
        return math.sqrt(self.megapixels * 1e6 / (height * width))


@dataclass(frozen=True)
class Box:
    """The largest result that fits a screen of this size, turned like the picture. Raises UserError for sides under 1
    px."""

    width: int
    height: int

    def __post_init__(self) -> None:
        if not all(is_whole(side) and side >= 1 for side in (self.width, self.height)):
            raise UserError(
                f"A box of {self.width!r} x {self.height!r} px is not possible: choose whole numbers from 1."
            )

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
    """Both sides times this number, 1 to 8. Raises UserError for what is no number."""

    scale: float

    def __post_init__(self) -> None:
        if not is_number(self.scale):
            raise UserError(f"Scale {self.scale!r} is not a number: choose one from {MIN_SCALE:g} to {MAX_SCALE:g}.")

    def __str__(self) -> str:
        return f"{self.scale:g}"

    def factor(self, height: int, width: int) -> float:
        if not MIN_SCALE <= self.scale <= MAX_SCALE:
            raise UserError(f"Scale {self.scale:g} is out of range: choose one from {MIN_SCALE:g} to {MAX_SCALE:g}.")
        return self.scale


@dataclass(frozen=True)
class Exact:
    """This size, whose sides are the picture's times nearly the same factor; for the core's own use."""

    height: int
    width: int

    def factor(self, height: int, width: int) -> float:
        return min(self.height / height, self.width / width)


def chosen_target(size: str, pixels: int, megapixels: float) -> Target | None:
    """The target of one of SIZES, of which `pixels` is the length of a side; None for the factor.

    Raises UserError for other sizes, and as the targets do.
    """
    kind, _, preset = size.partition(" ")
    if size not in SIZES:
        raise UserError(f"Size {size!r} is unknown: choose one of {', '.join(SIZES)}.")
    if size == FACTOR:
        return None
    if size == MEGAPIXELS:
        return Megapixels(megapixels)
    return Box.parse(preset) if kind == FIT else Side(cast("SideKind", kind), pixels)


def size_for(target: Target, height: int, width: int) -> Size:
    """The result's size for a picture: both sides times the same factor, rounded, and at least 1 px.

    A picture that is larger than its target has a factor under 1. Raises UserError for a scale out of bounds, for a
    picture under 8 px a side, and for a result of more than 8 times the picture's size.
    """
    if isinstance(target, Exact):
        return target.height, target.width
    factor = target.factor(height, width)
    if min(height, width) < MIN_SIDE:
        raise UserError(f"The picture is {width} x {height} px: it needs at least {MIN_SIDE} px a side.")
    if factor > MAX_SCALE:
        raise UserError(
            f"For {target}, the picture of {width} x {height} px must become {math.ceil(factor * 10) / 10:.9g} times "
            f"as large, but at most {MAX_SCALE:g} times is possible: choose a smaller size."
        )
    return max(1, round(factor * height)), max(1, round(factor * width))
