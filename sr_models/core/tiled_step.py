"""Run a step on a large canvas tile by tile, several at once if memory allows, and blend the tiles."""

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
    """The inputs from which tiles are cut, for a whole picture or a band of one.

    latent: (B, c, h, w). noise: (B, n c, h, w) for a step that needs n noises; None if it needs none. lr: (B, 3, f h,
    f w), the LR picture in [-1, 1] with f times the latent's resolution.
    """

    latent: Tensor
    noise: Tensor | None
    lr: Tensor

    def cut(self, tiles: Sequence[Tile]) -> tuple[Tensor, Tensor, Tensor]:
        """Latent, noise and LR picture of the tiles, concatenated along the batch. If there is no noise, the latent is
        returned in its place."""
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
    """Run the step on each tile and add it, weighted, to `result` (B, c, h, w). All tiles must have the same size.

    Args:
        batch: how many tiles the network processes at once, within the policy's limits.
        policy: the run's limits. If memory runs out with several tiles at once, it allows fewer from then on.
        keep_going: continue after a tile with values that are not finite; else stop there.
        done: called for each finished tile with the tile and its values (B, c, th, tw) before blending.

    Returns:
        The tiles with values that are not finite. They are not added to the result.

    Raises what the network raises if memory runs out with a single tile.
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
        if pieces is None:  # not in the handler, which keeps the failed pass's tensors alive
            policy.ran_out(len(group) * window[0] * window[1])
            release_cached()
            continue
        position += len(group)
        failed += _blend(group, pieces.split(len(canvas.latent)), result, done)
    return failed


def _blend(group: Sequence[Tile], pieces: Sequence[Tensor], result: Tensor, done: TileDone | None) -> list[Tile]:
    """Add the pieces to the result. Pieces that are not finite are left out; returns their tiles."""
    failed = []
    for tile, piece in zip(group, pieces, strict=True):
        if not torch.isfinite(piece).all():
            failed.append(tile)
            continue
        tile.cut(result).add_(piece * tile.weight.to(piece.device))
        if done is not None:
            done(tile, piece)
    return failed
