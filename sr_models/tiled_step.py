"""A step on a large canvas: tile by tile, several at once where there is room, blended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor

from .errors import UserError
from .step import Network, Step
from .tiling import Plan, Tile

TileDone = Callable[[int, Tile, Tensor], None]


def step_tiles(
    step: Step,
    network: Network,
    latent: Tensor,
    noise: Tensor,
    condition: Tensor,
    tiles: Plan,
    *,
    batch: int = 1,
    done: TileDone | None = None,
) -> Tensor:
    """The step's result for a canvas, each tile stepped by itself and blended with its neighbours.

    Args:
        latent, noise: (B, c, h, w), the whole canvas.
        condition: (B, 3, n h, n w): the LR picture in [-1, 1], n times as fine as the latent.
        batch: how many tiles go through the network at once.
        done: called for each tile with (tiles done so far, the tile, its result before blending).

    Raises:
        UserError: where the network's values are not finite.
    """
    fineness = condition.shape[-1] // latent.shape[-1]
    result = torch.zeros_like(latent)
    finished = 0
    for group in _groups(tiles, batch):
        cuts = (
            torch.cat([tile.cut(canvas, n) for tile in group])
            for canvas, n in ((latent, 1), (noise, 1), (condition, fineness))
        )
        pieces = step(network, *cuts)
        if not torch.isfinite(pieces).all():
            raise UserError("The network gave values that are not finite: run it in float32.")
        for tile, piece in zip(group, pieces.split(len(latent)), strict=True):
            tile.cut(result).add_(piece * tile.weight.to(piece.device))
            finished += 1
            if done is not None:
                done(finished, tile, piece)
    return result


def _groups(tiles: Plan, size: int) -> Iterator[list[Tile]]:
    remaining = iter(tiles)
    while group := list(islice(remaining, size)):
        yield group
