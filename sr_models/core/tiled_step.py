"""A step on a large canvas: tile by tile, several at once where there is room, blended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas.tiling import Tile
from .memory import is_out_of_memory, release_cached
from .step import Network, Step
from .tile_policy import TilePolicy

TileDone = Callable[[Tile, Tensor], None]


@dataclass(frozen=True)
class Canvas:
    """What tiles are cut from: a whole picture, or a band of one.

    latent, noise: (B, c, h, w); noise is None for a step that needs none. lr: (B, 3, n h, n w), the LR picture in
    [-1, 1], n times as fine.
    """

    latent: Tensor
    noise: Tensor | None
    lr: Tensor

    def cut(self, tiles: Sequence[Tile]) -> tuple[Tensor, Tensor, Tensor]:
        """Latent, noise and LR picture of some tiles, one after the other along the batch. A step that needs no
        noise gets the latent in its place."""
        fineness = self.lr.shape[-1] // self.latent.shape[-1]
        latent = torch.cat([tile.cut(self.latent) for tile in tiles])
        noise = latent if self.noise is None else torch.cat([tile.cut(self.noise) for tile in tiles])
        return latent, noise, torch.cat([tile.cut(self.lr, fineness) for tile in tiles])


def step_tiles(
    network: Network,
    step: Step,
    canvas: Canvas,
    tiles: Sequence[Tile],
    result: Tensor,
    *,
    batch: int = 1,
    policy: TilePolicy | None = None,
    keep_going: bool = True,
    done: TileDone | None = None,
) -> list[Tile]:
    """Step each tile by itself and add it, weighted, to `result` (B, c, h, w). All tiles have one size.

    Args:
        batch: how many tiles go through the network at once, within the policy's limits.
        policy: the run's; where memory runs out with several tiles at once, it takes fewer from then on.
        keep_going: continue after a tile whose values are not finite, or stop there.
        done: called for each finished tile with it and its values (B, c, th, tw) before blending.

    Returns:
        The tiles whose values were not finite, and which are not in the result.

    Raises what the network raises when memory runs out on a single tile.
    """
    policy, window = policy or TilePolicy(), tiles[0].size
    failed: list[Tile] = []
    position = 0
    while position < len(tiles) and (keep_going or not failed):
        group, pieces = tiles[position : position + policy.at_once(batch, window)], None
        try:
            pieces = step(network, *canvas.cut(group))
        except (MemoryError, RuntimeError) as error:
            if len(group) == 1 or not is_out_of_memory(error):
                raise
        if pieces is None:  # outside of the handler, which would keep the failed run's tensors alive
            policy.ran_out(len(group) * window[0] * window[1])
            release_cached()
            continue
        position += len(group)
        failed += _blend(group, pieces.split(len(canvas.latent)), result, done)
    return failed


def _blend(group: Sequence[Tile], pieces: Sequence[Tensor], result: Tensor, done: TileDone | None) -> list[Tile]:
    """Add the pieces to the result; gives the tiles whose pieces are not finite, which are left out."""
    failed = []
    for tile, piece in zip(group, pieces, strict=True):
        if not torch.isfinite(piece).all():
            failed.append(tile)
            continue
        tile.cut(result).add_(piece * tile.weight.to(piece.device))
        if done is not None:
            done(tile, piece)
    return failed
