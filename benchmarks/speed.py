"""Time and peak memory of the bundled model beside upscalers of other packs, on random weights, in one run.

    python benchmarks/speed.py [--threads 1 2] [--sides 96 128 512] [--repeats 5] [--peers]

A row per precision, number of threads and side of the input: medians over the repeats, after one warm-up, without
loading, and each measurement's peak in its own process. bf16 is measured where the CPU has units for it. With
ONEDNN_MAX_CPU_ISA=AVX2 in the environment, the CPU is used like one without such units.

The peers are spandrel's RRDBNet (ESRGAN's network: 23 blocks of 64 channels) and its SPAN, as wide as gives it the
bundled model's number of weights, both as networks alone, without the pipeline around ours: ComfyUI's Python has
spandrel, others need pip install spandrel torchvision.
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
from torch import Tensor, nn

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
SPAN_CHANNELS = 84  # 1.29 M weights in use
LARGEST_PEER_SIDE = 128  # RRDBNet needs minutes for 512 px


def bundled(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    from onestep_sr.sr_models.core.upscale import upscale
    from onestep_sr.sr_models.families.loading import load

    model = load(dtype=dtype).model
    return lambda image: upscale(model, image)


def rrdbnet(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    from spandrel.architectures.ESRGAN import ESRGAN

    return _network(ESRGAN(num_blocks=23, scale=4), dtype)


def span(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    from spandrel.architectures.SPAN import SPAN

    return _network(SPAN(num_in_ch=3, num_out_ch=3, feature_channels=SPAN_CHANNELS, upscale=4), dtype)


def _network(network: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    network = network.eval().to(dtype=dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    forward = torch.inference_mode()(network.forward)
    return lambda image: forward(image.to(dtype))


UPSCALERS = {"bundled": bundled, "SPAN": span, "RRDBNet": rrdbnet}


def measure(name: str, dtype: str, threads: int, side: int, repeats: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    upscaler = UPSCALERS[name](DTYPES[dtype])
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    seconds = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        upscaler(image)
        seconds.append(time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": statistics.median(seconds[1:]), "peak_mb": peak}


def in_own_process(*case: object) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", *map(str, case)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def precisions() -> list[str]:
    from onestep_sr.sr_models.core.devices import default_dtype

    return list(DTYPES) if default_dtype(torch.device("cpu")) == torch.bfloat16 else ["float32"]


def row(names: list[str], dtype: str, threads: int, side: int, repeats: int) -> str:
    results = {name: in_own_process(name, dtype, threads, side, repeats) for name in names}
    cells = [f"{result['seconds']:.3f} s, {result['peak_mb']:.0f} MB" for result in results.values()]
    cells += [f"{results[name]['seconds'] / results['bundled']['seconds']:.2f}" for name in names[1:]]
    return f"| {' | '.join([dtype, str(threads), f'{side} -> {4 * side} px', *cells])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sides", type=int, nargs="+", default=[96, 128, 512])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, dtype, *numbers = options.one
        print(json.dumps(measure(name, dtype, *map(int, numbers))))
        return
    peers = [name for name in UPSCALERS if name != "bundled"] if options.peers else []
    titles = ["precision", "threads", "size", "bundled", *peers, *(f"{name} / bundled" for name in peers)]
    print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}", flush=True)
    for dtype in precisions():
        for threads in options.threads:
            for side in options.sides:
                names = ["bundled", *peers] if side <= LARGEST_PEER_SIDE else ["bundled"]
                print(row(names, dtype, threads, side, options.repeats), flush=True)


if __name__ == "__main__":
    main()
