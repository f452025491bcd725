"""The sizes of a picture in every stage of the pipeline. Sizes are (height, width)."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError
from .recipe import Recipe

Size = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """The sizes of one picture in the pipeline.

    Attributes:
        result: the requested size, in pixels.
        lr: the network's input, enlarged if the network alone would not reach the result.
        padded: the input, padded to sides that the network accepts.
        network: the network's result without padding.
        latent: the canvas from which tiles are cut, in latent pixels.
        shown: the canvas without padding, in latent pixels.
    """

    result: Size
    lr: Size
    padded: Size
    network: Size
    latent: Size
    shown: Size


def geometry(recipe: Recipe, factor: int, image: Size, result: Size) -> Geometry:
    """The sizes for a picture of size `image`; `factor` is the codec's picture side divided by its latent side."""
    lr = _input_size(recipe, factor, image, result)
    pixels = factor // recipe.scale  # LR pixels per latent pixel
    unit = recipe.multiple * pixels
    padded = (_up(lr[0], unit), _up(lr[1], unit))
    return Geometry(
        result,
        lr,
        padded,
        network=(lr[0] * recipe.scale, lr[1] * recipe.scale),
        latent=(padded[0] // pixels, padded[1] // pixels),
        shown=(-(-lr[0] // pixels), -(-lr[1] // pixels)),
    )


def _input_size(recipe: Recipe, factor: int, image: Size, result: Size) -> Size:
    """The picture's own size, or the size that the network needs for the result or for the recipe's shortest side,
    if that is larger."""
    enlarged = max(1.0, recipe.shortest * factor / min(result)) / recipe.scale
    wanted = (round(result[0] * enlarged), round(result[1] * enlarged))
    return wanted if wanted[0] > image[0] or wanted[1] > image[1] else image


def _up(length: int, unit: int) -> int:
    return -(-length // unit) * unit


def latent_tile(recipe: Recipe, factor: int, tile: int | None, overlap: int | None) -> tuple[int, int]:
    """Tile side and overlap in latent pixels, from values in result pixels; None means the recipe's.

    Raises UserError for a tile under 1 px, and for an overlap over half a tile.
    """
    if tile is not None and tile < 1:
        raise UserError(f"Tile {tile} is too small: choose {recipe.multiple * factor} px or more.")
    unit = recipe.multiple
    side = recipe.tile if tile is None else -(-tile // (unit * factor)) * unit
    if overlap is None:
        return side, min(recipe.overlap, side // 2)
    if not 0 <= overlap <= side * factor // 2:
        raise UserError(f"Overlap {overlap} does not fit a tile of {side * factor}: choose 0 to {side * factor // 2}.")
    return side, -(-overlap // factor)


def require_window(recipe: Recipe, factor: int, window: Size) -> None:
    """Raise UserError if a window (latent pixels) is larger than the network supports."""
    if recipe.largest_tile and max(window) > recipe.largest_tile:
        raise UserError(
            f"Tile {max(window) * factor} is too large for {recipe.title}: "
            f"choose {recipe.largest_tile * factor} px or less."
        )
