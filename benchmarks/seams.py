"""Measure visibility of tile borders: the mean gradient across them, relative to the same lines of the untiled result.

    python benchmarks/seams.py FOLDER [--side 256] [--tile 64] [--overlap 16]

Upscales photos with the bundled model, with our windows and weights, and with those of the published script (TSD-SR):
windows at a fixed stride with the last one moved inside, Gaussian weights of variance 0.01 of the squared side whose
vertical centre is off by half a pixel. Tile and overlap are in latent pixels; for the bundled model one is an LR pixel.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from onestep_sr.sr_models.canvas.noise import canvas_noise
from onestep_sr.sr_models.canvas.resize import resize
from onestep_sr.sr_models.canvas.tiling import Axis, Plan, Tile, plan
from onestep_sr.sr_models.core.model import SRModel
from onestep_sr.sr_models.core.tiled_step import Canvas, step_tiles
from onestep_sr.sr_models.families.loading import load
from onestep_sr.sr_models.files.read import read_picture
from torch import Tensor

SCALE = 4


def upscaled(model: SRModel, lr: Tensor, tiles: list[Tile]) -> Tensor:
    """The result for an LR picture, with latents blended by the tiles' own weights."""
    latent = model.codec.encode(resize(lr, (SCALE * lr.shape[-2], SCALE * lr.shape[-1])))
    noise = canvas_noise(latent, 0) if model.recipe.step.noises else None
    canvas, result = Canvas(latent, noise, lr * 2 - 1), torch.zeros_like(latent)
    work = partial(step_tiles, step=model.recipe.step, canvas=canvas, tiles=tiles, result=result)
    model.denoiser.run(work, latent.shape)
    return model.codec.decode(result)


def published_plan(side: int, tile: int, overlap: int) -> Plan:
    starts = [*range(0, side - tile, tile - overlap), side - tile]
    axis = Axis(side, tile, tuple(starts))
    return Plan(axis, axis)


def published_tiles(tiles: Plan, tile: int) -> list[Tile]:
    """The windows with Gaussian weights, normalised over the canvas."""
    pixels = torch.arange(tile, dtype=torch.float64)
    across, down = (torch.exp(-(((pixels - middle) / tile) ** 2) / 0.02) for middle in ((tile - 1) / 2, tile / 2))
    weight, total = down[:, None] * across[None, :], torch.zeros(tiles.rows.length, tiles.columns.length).double()
    for each in tiles:
        each.cut(total).add_(weight)
    return [Tile(t.top, t.bottom, t.left, t.right, (weight / t.cut(total)).float()) for t in tiles]


def borders(axis: Axis) -> list[int]:
    """Positions in result pixels after which a window starts or ends."""
    inner = set(axis.starts[1:]) | {start + axis.size for start in axis.starts[:-1]}
    return sorted(SCALE * position - 1 for position in inner)


def gradient_across(picture: Tensor, tiles: Plan) -> float:
    """Mean absolute difference of neighbouring pixels on both sides of every border."""
    rows, columns = borders(tiles.rows), borders(tiles.columns)
    down = (picture[..., [r + 1 for r in rows], :] - picture[..., rows, :]).abs()
    across = (picture[..., [c + 1 for c in columns]] - picture[..., columns]).abs()
    return float(torch.cat([down.flatten(), across.flatten()]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--tile", type=int, default=64)
    parser.add_argument("--overlap", type=int, default=16)
    parser.add_argument("--count", type=int, default=8)
    options = parser.parse_args()
    model, side = load().model, options.side
    plans = {
        "ours": plan(side, side, options.tile, options.overlap),
        "published": published_plan(side, options.tile, options.overlap),
    }
    tiles = {"ours": list(plans["ours"]), "published": published_tiles(plans["published"], options.tile)}
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in plans}
    for path in sorted(options.folder.glob("*.png"))[: options.count]:
        lr = read_picture(path).pixels[None, :, :side, :side]
        whole = upscaled(model, lr, list(plan(side, side, side, 0)))
        for name, windows in plans.items():
            tiled = upscaled(model, lr, tiles[name])
            error = (tiled - whole).square().mean()
            sums[name] += torch.tensor([gradient_across(p, windows) for p in (tiled, whole)] + [float(error)])
    for name, (tiled, whole, error) in sums.items():
        psnr = -10 * torch.log10(error / options.count)
        print(
            f"{name:9} {len(plans[name]):3} tiles: gradient across borders {100 * (tiled / whole - 1):+.2f} % of "
            f"untiled, {psnr:.1f} dB from untiled"
        )


if __name__ == "__main__":
    main()
