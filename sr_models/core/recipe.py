"""How a method takes its step, as data; the tables of the published ones stand with their families."""

from __future__ import annotations

from dataclasses import dataclass

from ..canvas.color import ColorMatch
from .step import Step


@dataclass(frozen=True)
class Recipe:
    """What a method needs besides its weights.

    Attributes:
        scale: the network's own enlargement; 1 where it works on a picture enlarged beforehand.
        tile: side of its native window on the latent canvas, in latent pixels.
        overlap: what neighbouring windows share by default, in latent pixels.
        multiple: the latent canvas's sides are padded to multiples of this.
        color: the colour match that suits it.
        largest_tile: the widest window that the network can take, in latent pixels; 0 for no limit.
        shortest: smaller results are made at this shorter side, in latent pixels, and shrunk.
        prompt: what the text-conditioned ones were trained with.
    """

    name: str
    title: str
    citation: str
    step: Step
    scale: int = 4
    tile: int = 64
    overlap: int = 16
    multiple: int = 64
    color: ColorMatch = "none"
    largest_tile: int = 0
    shortest: int = 0
    prompt: str = ""
