"""Time and peak memory of the bundled model from file to file, for results that fit in memory and larger ones.

    python benchmarks/large_outputs.py [--sides 512 4096] [--format png] [--memory MB] [--frames 0]

Each size runs in its own process; the picture is demo/photo.png, repeated. Times are from the second of two runs for
sides up to 1024 px, otherwise from a single run. `--frames N` instead upscales N frames of 64 px in one process, and
prints its memory after a quarter of them and at the end (Linux).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from onestep_sr.sr_models.core.devices import default_dtype
from onestep_sr.sr_models.families.loading import load
from onestep_sr.sr_models.jobs.job import FileOptions
from onestep_sr.sr_models.jobs.plan import plan_jobs
from onestep_sr.sr_models.jobs.run import run_jobs
from PIL import Image

PHOTO = Path(__file__).resolve().parents[1] / "demo" / "photo.png"
SCALE = 4


def write_picture(path: Path, side: int) -> None:
    photo = np.asarray(Image.open(PHOTO).convert("RGB"))
    repeats = (-(-side // photo.shape[0]), -(-side // photo.shape[1]), 1)
    Image.fromarray(np.tile(photo, repeats)[:side, :side]).save(path)


def measure(side: int, options: argparse.Namespace) -> dict[str, float]:
    model = load(dtype=default_dtype(torch.device("cpu"))).model
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.png", Path(folder) / f"target.{options.format}"
        write_picture(source, side)
        jobs = plan_jobs([str(source)], target)
        outcome, *_ = [
            next(run_jobs(model, jobs, FileOptions(overwrite=True, memory=options.memory)))
            for _ in range(2 if side <= 1024 else 1)
        ][::-1]
        if outcome.status != "done":
            raise SystemExit(outcome.reason)
        with Image.open(target) as result:
            if result.size != (SCALE * side, SCALE * side):
                raise SystemExit(f"the result is {result.size[0]} x {result.size[1]} px")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": outcome.seconds, "peak_mb": peak}


def measure_frames(count: int) -> dict[str, float]:
    model = load(dtype=default_dtype(torch.device("cpu"))).model
    held = []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(count):
            write_picture(Path(folder) / f"{index:05}.png", 64)
        jobs = plan_jobs([folder], Path(folder) / "large")
        for _ in run_jobs(model, jobs, FileOptions()):
            status = Path("/proc/self/status").read_text()
            held.append(int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024)
    return {"quarter_mb": held[count // 4], "end_mb": held[-1]}


def in_own_process(argument: list[str], options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, *argument, "--format", options.format]
    command += [] if options.memory is None else ["--memory", str(options.memory)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def main() -> None:
    Image.MAX_IMAGE_PIXELS = None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--format", default="png")
    parser.add_argument("--memory", type=int)
    parser.add_argument("--frames", type=int, default=0)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure_frames(options.frames) if options.frames else measure(options.one, options)))
        return
    if options.frames:
        held = in_own_process(["--one", "1", "--frames", str(options.frames)], options)
        print(
            f"{options.frames} frames: {held['quarter_mb']:.0f} MB after a quarter, {held['end_mb']:.0f} MB at the end"
        )
        return
    for side in options.sides:
        result = in_own_process(["--one", str(side)], options)
        megapixels = (SCALE * side) ** 2 / 1e6
        print(
            f"{side:5} -> {SCALE * side:5} px: {result['seconds']:7.1f} s, {result['seconds'] / megapixels:.2f} s per "
            f"megapixel, peak {result['peak_mb']:.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
