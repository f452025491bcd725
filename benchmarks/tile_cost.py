"""What tiles of the ResShift family's x4 network cost, for one photo.

    python benchmarks/tile_cost.py [--photo 512] [--tiles 64 128 256 512]

Memory and operations of the published network, computed from shapes without weights; and the measured time of a small
network of the same kind (32 channels instead of 160) on the CPU. A tile's side is in pixels of the photo.
"""

from __future__ import annotations

import argparse
import time

import torch
from onestep_sr.sr_models.canvas.tiling import window_count
from onestep_sr.sr_models.families.resshift import RECIPES, VALUES_PER_PIXEL
from onestep_sr.sr_models.networks.swin_unet import SwinUNet, SwinUNetConfig
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from training_memory import AliveBytes

MIB = 2**20


def one_pass(network: SwinUNet, side: int, device: str) -> None:
    tile = torch.zeros(1, 3, side, side, device=device)
    network(tile, tile, torch.zeros(1, device=device))


def cost(network: SwinUNet, side: int) -> tuple[int, float]:
    """Peak bytes beside the weights, and operations, of one pass."""
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        AliveBytes() as alive,
        FlopCounterMode(display=False) as operations,
    ):
        one_pass(network, side, "meta")
    return alive.peak, operations.get_total_flops()


def seconds(network: SwinUNet, side: int, passes: int) -> float:
    """For all tiles of a photo, from as many passes as take about a second."""
    one_pass(network, side, "cpu")
    count, begin = 0, time.process_time()
    while count < passes and (count == 0 or time.process_time() - begin < 1):
        one_pass(network, side, "cpu")
        count += 1
    return (time.process_time() - begin) * passes / count


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=int, default=512)
    parser.add_argument("--tiles", type=int, nargs="+", default=[64, 128, 256, 512])
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.device("meta"):
        published = SwinUNet(SwinUNetConfig(published_mask=True)).half()
    small = SwinUNet(SwinUNetConfig(channels=32, swin_channels=64, published_mask=True)).eval()
    print("tile | tiles | fp16 memory per tile | values per latent pixel | operations in all | small network, one core")
    for tile in options.tiles:
        tiles = window_count(options.photo, tile, RECIPES["tad-sr"].overlap) ** 2
        memory, operations = cost(published, tile)
        values = memory / 2 / tile**2
        taken = seconds(small, tile, tiles)
        print(
            f"{tile} | {tiles} | {memory / MIB:.0f} MiB | {values:.0f} (used: {VALUES_PER_PIXEL}) | "
            f"{tiles * operations / 1e12:.1f} TFLOP | {taken:.1f} s"
        )


if __name__ == "__main__":
    main()
