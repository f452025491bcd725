"""The sizes that a picture takes on its way, known before a pixel is touched. Sizes are (height, width)."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError
from .recipe import Recipe

Size = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """How a picture gets to a result of one size.

    Attributes:
        result: what was asked for, in pixels.
        lr: the picture as the network sees it: enlarged where the network alone would not reach the result.
        padded: the same with sides that the network takes.
        network: what of the network's own result is picture and not padding.
        latent: the canvas that tiles are cut from, in latent pixels.
        shown: what of the canvas is picture and not padding.
    """

    result: Size
    lr: Size
    padded: Size
    network: Size
    latent: Size
    shown: Size


def geometry(recipe: Recipe, factor: int, image: Size, result: Size) -> Geometry:
    """`factor` is the codec's, picture side over latent side."""
    lr = _input_size(recipe, factor, image, result)
    pixels = factor // recipe.scale  # LR pixels a latent pixel
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
    """The picture's own size, or, where that is more, what the network needs for the result or for the recipe's
    shortest side."""
    enlarged = max(1.0, recipe.shortest * factor / min(result)) / recipe.scale
    wanted = (round(result[0] * enlarged), round(result[1] * enlarged))
    return wanted if wanted[0] > image[0] or wanted[1] > image[1] else image


def _up(length: int, unit: int) -> int:
    return -(-length // unit) * unit


def latent_tile(recipe: Recipe, factor: int, tile: int | None, overlap: int | None) -> tuple[int, int]:
    """Tile and overlap in latent pixels, from result pixels or the recipe. Raises UserError for misfits."""
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
    """Raise UserError where a window (latent pixels) is wider than the network can take."""
    if recipe.largest_tile and max(window) > recipe.largest_tile:
        raise UserError(
            f"Tile {max(window) * factor} is too large for {recipe.title}: "
            f"choose {recipe.largest_tile * factor} px or less."
        )
