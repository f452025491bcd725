"""Create the help pages' pictures of where ComfyUI's tiled VAE (left) and the seamless one (right) differ from untiled.

    python benchmarks/seamless_pictures.py ~/comfy/ComfyUI

The VAE has Stable Diffusion 3's architecture with random weights, as in `seamless_vae.py`, here on 256 px in float32.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from PIL import Image
from seamless_vae import FULL_WIDTH, ROOT, difference, in_own_process
from torch import Tensor, nn

METHODS = ("ComfyUI untiled", "ComfyUI tiled", "ComfyUI seamless")
NODES = {"decode": "OneStepSRVAEDecode", "encode": "OneStepSRVAEEncode"}
SIDE, TILE = 256, 128  # in pixels
SHOWN_SIDE, GAP = 360, 8


def options(comfyui: Path) -> argparse.Namespace:
    return argparse.Namespace(
        folder=comfyui,
        python=str(comfyui / ".venv" / "bin" / "python"),
        tile=TILE,
        threads=1,
        repeats=1,
        budget=2048,
        dtype="float32",
        kind="sd3",
        width=FULL_WIDTH,
        frames=0,
    )


def results(comfyui: Path, direction: str) -> list[Tensor]:
    with tempfile.TemporaryDirectory() as name:
        return [in_own_process(options(comfyui), method, direction, SIDE, Path(name))[1] for method in METHODS]


def picture(untiled: Tensor, others: list[Tensor]) -> Image.Image:
    """Mean over the channels; white is where ComfyUI's tiling differs most, the last hundredth aside."""
    maps = [(other - untiled).abs().mean(1, keepdim=True) for other in others]
    shown = [each.div(maps[0].quantile(0.99)).clamp(max=1) for each in maps]
    left, right = (nn.functional.interpolate(each, (SHOWN_SIDE, SHOWN_SIDE)) for each in shown)
    both = torch.cat([left, torch.ones(1, 1, SHOWN_SIDE, GAP), right], -1)
    return Image.fromarray((both[0, 0] * 255).byte().numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path, help="a ComfyUI checkout with .venv")
    comfyui = parser.parse_args().comfyui
    for (direction, node), peak in zip(NODES.items(), (1, 2), strict=True):
        untiled, *others = results(comfyui, direction)
        print(direction, *(difference(other, untiled, peak) for other in others))
        picture(untiled, others).save(ROOT / "web" / "docs" / "images" / f"{node}-difference.jpg", quality=85)


if __name__ == "__main__":
    main()
