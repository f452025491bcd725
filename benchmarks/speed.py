"""Time and peak memory of the bundled model, and the speedup over RRDBNet (ESRGAN) x4 in the same run.

    python benchmarks/speed.py [--threads 2] [--repeats 5] [--peer]

Each measurement runs in its own process, so that peaks are separate. Medians over the repeats, after one warm-up,
without loading. The peer is spandrel's RRDBNet (23 blocks of 64 channels, random weights, in float32 as upscalers use
it on a CPU) on the same input: pip install --no-deps spandrel torchvision==0.16.2
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

SIDES = (128, 512)
PEER_SIDE = 128


def bundled() -> Callable[[Tensor], Tensor]:
    from onestep_sr.sr_models.core.devices import default_dtype
    from onestep_sr.sr_models.core.upscale import upscale
    from onestep_sr.sr_models.families.loading import load

    model = load(dtype=default_dtype(torch.device("cpu"))).model
    return lambda image: upscale(model, image)


def rrdbnet() -> Callable[[Tensor], Tensor]:
    from spandrel.architectures.ESRGAN import ESRGAN

    network = ESRGAN(num_blocks=23, scale=4).eval()
    return torch.inference_mode()(network.forward)


def measure(name: str, side: int, repeats: int, threads: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    upscaler = {"bundled": bundled, "rrdbnet": rrdbnet}[name]()
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    seconds = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        upscaler(image)
        seconds.append(time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": statistics.median(seconds[1:]), "peak_mb": peak}


def in_own_process(name: str, side: int, repeats: int, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", name, str(side), "--repeats", str(repeats), "--threads", str(threads)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]), options.repeats, options.threads)))
        return
    results = {side: in_own_process("bundled", side, options.repeats, options.threads) for side in SIDES}
    for side, result in results.items():
        print(f"bundled  {side:4} -> {4 * side:4} px: {result['seconds']:.3f} s, peak {result['peak_mb']:.0f} MB")
    if options.peer:
        peer = in_own_process("rrdbnet", PEER_SIDE, options.repeats, options.threads)
        ratio = peer["seconds"] / results[PEER_SIDE]["seconds"]
        print(f"RRDBNet  {PEER_SIDE:4} -> {4 * PEER_SIDE:4} px: {peer['seconds']:.3f} s, peak {peer['peak_mb']:.0f} MB")
        print(f"bundled is {ratio:.1f} times as fast")


if __name__ == "__main__":
    main()
