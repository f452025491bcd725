"""A step on a large canvas: tile by tile, several at once where there is room, blended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas.tiling import Tile
from ..errors import UserError
from .memory import is_out_of_memory, release_cached
from .model import Condition, Denoiser, SRModel
from .step import Network, Step

TileDone = Callable[[Tile, Tensor], None]
Notice = Callable[[str], None]


def ignored(notice: str) -> None:
    """For callers that nobody reads."""


@dataclass(frozen=True)
class Canvas:
    """What belongs to the whole picture, and what tiles are cut from.

    latent, noise: (B, c, h, w). condition: (B, 3, n h, n w), the LR picture in [-1, 1], n times as fine.
    """

    latent: Tensor
    noise: Tensor
    condition: Tensor

    def cut(self, tiles: Sequence[Tile]) -> tuple[Tensor, Tensor, Tensor]:
        """Latent, noise and condition of some tiles, one after the other along the batch."""
        fineness = self.condition.shape[-1] // self.latent.shape[-1]
        return (
            torch.cat([tile.cut(self.latent) for tile in tiles]),
            torch.cat([tile.cut(self.noise) for tile in tiles]),
            torch.cat([tile.cut(self.condition, fineness) for tile in tiles]),
        )


def step_canvas(
    model: SRModel,
    canvas: Canvas,
    tiles: Sequence[Tile],
    *,
    condition: Condition = None,
    batch: int | None = None,
    done: TileDone | None = None,
    notice: Notice = ignored,
) -> Tensor:
    """The model's step on all tiles (of one size), blended: (B, c, h, w). Tiles that overflow are done in float32.

    batch, done: as for `step_tiles`; a batch of None lets the denoiser choose. notice: told about such tiles.
    Raises UserError where values are not finite in float32 either.
    """
    result, step, denoiser = torch.zeros_like(canvas.latent), model.recipe.step, model.denoiser
    missing = _step_with(denoiser, step, canvas, tiles, result, condition, batch, done)
    if missing and denoiser.dtype != torch.float32:
        notice(f"{len(missing)} of {len(tiles)} tiles overflowed in {denoiser.dtype} and were done in float32.")
        missing = _step_with(denoiser.in_float32(), step, canvas, missing, result, condition, batch, done)
    if missing:
        raise UserError("The network gave values that are not finite: run it in float32.")
    return result


def _step_with(
    denoiser: Denoiser,
    step: Step,
    canvas: Canvas,
    tiles: Sequence[Tile],
    result: Tensor,
    condition: Condition,
    batch: int | None,
    done: TileDone | None,
) -> list[Tile]:
    """The tiles whose values were not finite; in float32 the first one ends it, for there is no rescue."""
    height, width = tiles[0].weight.shape
    shape = (1, canvas.latent.shape[1], height, width)
    at_once = min(len(tiles), batch or denoiser.tiles_at_once(shape))
    patient = denoiser.dtype != torch.float32

    def work(network: Network) -> list[Tile]:
        return step_tiles(step, network, canvas, tiles, result, batch=at_once, patient=patient, done=done)

    return denoiser.run(work, (at_once, *shape[1:]), condition)


def step_tiles(
    step: Step,
    network: Network,
    canvas: Canvas,
    tiles: Sequence[Tile],
    result: Tensor,
    *,
    batch: int = 1,
    patient: bool = True,
    done: TileDone | None = None,
) -> list[Tile]:
    """Step each tile by itself and add it, weighted, to `result` (B, c, h, w).

    Args:
        batch: how many tiles go through the network at once; halved where memory runs out.
        patient: go on after a tile whose values are not finite, or stop there.
        done: called for each finished tile with it and its values (B, c, th, tw) before blending.

    Returns:
        The tiles whose values were not finite, and which are not in the result.

    Raises what the network raises when memory runs out on a single tile.
    """
    failed: list[Tile] = []
    position = 0
    while position < len(tiles) and (patient or not failed):
        group = tiles[position : position + batch]
        pieces = _step_group(step, network, canvas, group)
        if pieces is None:
            batch = max(1, len(group) // 2)
            release_cached()
            continue
        position += len(group)
        for tile, piece in zip(group, pieces.split(len(canvas.latent)), strict=True):
            if not torch.isfinite(piece).all():
                failed.append(tile)
                continue
            tile.cut(result).add_(piece * tile.weight.to(piece.device))
            if done is not None:
                done(tile, piece)
    return failed


def _step_group(step: Step, network: Network, canvas: Canvas, group: Sequence[Tile]) -> Tensor | None:
    """The group's values; None where there is not enough memory for several tiles."""
    try:
        return step(network, *canvas.cut(group))
    except (MemoryError, RuntimeError) as error:
        if len(group) == 1 or not is_out_of_memory(error):
            raise
    return None  # outside of the handler, which would keep the failed run's tensors alive
