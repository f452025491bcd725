"""The settings of a method, as data. The recipes of published methods are in their families' files."""

from __future__ import annotations

from dataclasses import dataclass

from ..canvas.color import ColorMatch
from ..canvas.resize import Enlarging
from .step import Step


@dataclass(frozen=True)
class Footprint:
    """What a method needs of memory, in numbers of values; 0 for what is unknown or negligible.

    Attributes:
        weights: the weights that are used, with those of the base and the autoencoder.
        per_pixel: how many values per latent pixel exist at once in a pass of the network.
        mapped: how many values of an autoencoder's feature maps exist at once, per pixel of the result.
    """

    weights: int = 0
    per_pixel: int = 0
    mapped: int = 0


@dataclass(frozen=True)
class Recipe:
    """The settings that a method needs besides its weights.

    Attributes:
        scale: the network's upscale factor; 1 if the picture is enlarged before the network.
        tile: default side of a tile, in latent pixels.
        overlap: default overlap of neighbouring tiles, in latent pixels.
        multiple: the sides of the latent canvas are padded to multiples of this.
        color: default colour matching.
        largest_tile: the largest tile side that the network supports, in latent pixels; 0 means no limit.
        shortest: a result with a shorter side below this, in latent pixels, is computed at this size and shrunk.
        prompt: the prompt that a text-conditioned method was trained with.
        negative_prompt, guidance: for methods that are guided away from a second prompt, as in `Guided`; a guidance of
            1 uses no second prompt.
        enlarging: how the picture is enlarged before the network.
        footprint: the memory that its networks need.
        further: for a recipe of scale 1 with an autoencoder, steps that follow the first one, each from the latent of
            the one before it. Before each of them, the network and the conditioner look again: at the enlarged picture,
            mixed with the result so far.
        result_share: share of the result so far in that mixture.
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
    negative_prompt: str = ""
    guidance: float = 1.0
    enlarging: Enlarging = "bicubic"
    footprint: Footprint = Footprint()
    further: tuple[Step, ...] = ()
    result_share: float = 0.0
