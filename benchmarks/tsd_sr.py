"""Compare TSD-SR with the published script on the same random weights: time per picture (file to file) and memory.

    PYTHONPATH=tests python benchmarks/tsd_sr.py [--reference FOLDER] [--full] [--device cuda] [--sides 512 2048]

`--reference` is a checkout of TSD-SR's repository with its requirements installed; without it, only this project is
measured. The small transformer (2 blocks) is for CPUs; `--full` uses the size of Stable Diffusion 3 medium (2.03e9
parameters, LoRA of rank 64). Each measurement runs in its own process; medians over the repeats, after one warm-up.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image

FULL = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}


def write_models(root: Path, full: bool) -> None:
    """The full size in half precision, made on the GPU if there is one."""
    import small_sd3

    if not full:
        small_sd3.write(root)
        return
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        transformer, vae = small_sd3.build_transformer(**FULL), small_sd3.build_vae(small_sd3.FULL_WIDTHS)
    files = small_sd3.write_folder(root, transformer.half(), vae.half())
    small_sd3.write_lora(files.lora, transformer, vae, rank=64)


def write_pictures(folder: Path, side: int, count: int) -> None:
    folder.mkdir(parents=True)
    noise = torch.rand(side // 4, side // 4, 3, generator=torch.Generator().manual_seed(0))
    for index in range(count):
        Image.fromarray((noise * 255).byte().numpy()).save(folder / f"{index:02}.png")


def open_ours(models: Path, device: str, precision: str) -> Any:
    from onestep_sr.sr_models.diffusers_host.lora import open_lora

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    place: dict[str, Any] = {"dtype": dtype, "device": torch.device(device)}
    return open_lora(models / "sd3", models / "tsdsr", embeddings=models / "embeddings", **place).model


def run_ours(model: Any, pictures: Path, batch: int) -> list[float]:
    """Seconds per picture. A picture that fails, or that is computed again in float32, ends the measurement."""
    from onestep_sr.sr_models.core.options import UpscaleOptions
    from onestep_sr.sr_models.jobs.job import FileOptions
    from onestep_sr.sr_models.jobs.plan import plan_jobs
    from onestep_sr.sr_models.jobs.run import run_jobs

    jobs = plan_jobs([str(pictures)], pictures.parent / "ours")
    outcomes = [*run_jobs(model, jobs, FileOptions(UpscaleOptions(batch=batch), overwrite=True))]
    for outcome in outcomes:
        if outcome.status != "done" or any("overflowed" in notice for notice in outcome.notices):
            raise RuntimeError(" ".join((outcome.reason, *outcome.notices)))
    return [outcome.seconds for outcome in outcomes]


def run_reference(models: Path, pictures: Path, device: str, precision: str, reference: Path) -> list[float]:
    """Run the published script unchanged; it calls `empty_cache` after each picture, which is used to measure time."""
    ends = [time.perf_counter()]
    torch.cuda.empty_cache = lambda: ends.append(time.perf_counter())
    rank = "64" if "full" in models.name else "4"
    options = {
        "--pretrained_model_name_or_path": models / "sd3",
        "--lora_dir": models / "tsdsr",
        "--embedding_dir": models / "embeddings",
        "--input_dir": pictures,
        "--output_dir": pictures.parent / "reference",
        "--rank": rank,
        "--rank_vae": rank,
        "--device": device,
        "--mixed_precision": precision,
    }
    sys.argv = ["test_tsdsr.py", *(str(part) for pair in options.items() for part in pair)]
    os.chdir(reference)
    runpy.run_path(str(reference / "test" / "test_tsdsr.py"), run_name="__main__")
    count = len([*pictures.iterdir()])
    return [end - begin for begin, end in pairwise(ends[-count - 1 :])]  # libraries may call it at loading, too


def measure(options: argparse.Namespace) -> dict[str, float]:
    models, pictures, precision = Path(options.models), Path(options.pictures), options.precision
    if options.one == "ours":
        seconds = run_ours(open_ours(models, options.device, precision), pictures, options.batch)
    else:
        seconds = run_reference(models, pictures, options.device, precision, Path(options.reference).resolve())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if options.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    return {"seconds": statistics.median(seconds[1:]), "peak_mb": peak / 2**20}


def in_own_process(name: str, models: Path, pictures: Path, precision: str, options: argparse.Namespace) -> dict:
    command = [sys.executable, __file__, "--one", name, "--models", models, "--pictures", pictures]
    command += ["--precision", precision, "--device", options.device, "--batch", options.batch]
    command += ["--reference", options.reference] if options.reference else []
    result = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sides", type=int, nargs="+", default=[512])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4, help="tiles per batch, for this project only")
    for name in ("one", "models", "pictures", "precision"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options)))
        return
    same = "fp16" if options.device == "cuda" else "fp32"
    with tempfile.TemporaryDirectory() as scratch:
        models = Path(scratch) / ("full" if options.full else "small")
        write_models(models, options.full)
        for side in options.sides:
            pictures = Path(scratch) / str(side) / "pictures"
            write_pictures(pictures, side, options.repeats + 1)
            rows = {f"ours {same}": ("ours", same), "ours bf16": ("ours", "bf16")}
            if options.reference:
                rows[f"reference {same}"] = ("reference", same)
            seconds = {}
            for row, (name, precision) in rows.items():
                result = in_own_process(name, models, pictures, precision, options)
                seconds[row] = result["seconds"]
                print(
                    f"{side:4} px  {row:15} {result['seconds']:7.3f} s ({1 / result['seconds']:.2f} pictures/s), ",
                    end="",
                )
                print(f"peak {result['peak_mb']:.0f} MB", flush=True)
            if options.reference:
                print(f"{side:4} px  ours / reference: {seconds[f'ours {same}'] / seconds[f'reference {same}']:.2f}")


if __name__ == "__main__":
    main()
