"""Everything that only a GPU can show, with one command: `make gpu`, or

    PYTHONPATH=tests python benchmarks/gpu.py [--output gpu-results] [--minutes 8] [--tsd-sr FOLDER]

It runs the tests marked `gpu`, then measures seconds and peak memory on random weights, made on the spot: the bundled
model to 4K, TSD-SR on a Stable Diffusion 3 medium, the families on Stable Diffusion 2.1, the seamless VAE with its maps
on the GPU and in main memory, and training steps on Stable Diffusion 3 medium. Each measurement runs in its own
process: the median of three runs after a warm-up. `results.md` and `results.json` are written after each one, so a run
that is stopped keeps what it has. What has no time left within `--minutes`, and what fails, is named in the table.

`--tsd-sr FOLDER`, a checkout of TSD-SR's repository with its requirements installed, adds the published script.
`--small --device cpu` tries the whole on small networks without a GPU; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import families
import small_sd3
import torch
import training_memory
import tsd_sr

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 3
MIB = 2**20
NARROW = (32, 32, 64, 64)  # the widths of a VAE that is only tried
TITLES = {
    "bundled": "bundled model, x4",
    "tsd-sr": "TSD-SR, file to file",
    "tsd-sr-published": "TSD-SR, published script",
    "family": "on Stable Diffusion 2.1:",
    "vae": "seamless VAE decode, maps",
    "training": "TSD-SR training step, 512 px, batch",
}
# Seconds that a measurement should not exceed, for an A100-class card.
GOALS = {("bundled", "4K"): 3.0, ("tsd-sr", "512"): 0.15, ("tsd-sr", "1024"): 0.6, ("tsd-sr", "4096"): 10.0}
RATIOS = [  # of two measurements' seconds, with the largest that is wanted
    (("tsd-sr", "512"), ("tsd-sr-published", "512"), 0.8),
    (("vae", "in main memory"), ("vae", "on the device"), 1.25),
]


@dataclass(frozen=True)
class Row:
    """What was measured: `seconds` and `peak_mb` of the device, or the reason why not."""

    kind: str
    what: str
    seconds: float | None = None
    peak_mb: float | None = None
    failed: str = ""


# What is measured, each in its own process


def timed(work: Callable[[], Any], device: str) -> dict[str, float]:
    cuda = device == "cuda"
    seconds = []
    for _ in range(REPEATS + 1):
        if cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated() / MIB if cuda else 0.0
    return {"seconds": statistics.median(seconds[1:]), "peak_mb": peak}


def bundled(what: str, options: argparse.Namespace) -> dict[str, float]:
    from onestep_sr.sr_models.core.devices import default_dtype
    from onestep_sr.sr_models.core.upscale import upscale
    from onestep_sr.sr_models.families.loading import load

    device = torch.device(options.device)
    model = load(dtype=default_dtype(device)).to(device).model
    image = torch.rand(1, 3, 54, 96) if options.small else torch.rand(1, 3, 540, 960)
    return timed(lambda: upscale(model, image), options.device)


def tsd(what: str, options: argparse.Namespace, reference: str | None = None) -> dict[str, float]:
    models, side = Path(options.files) / sd3_folder(options.small), int(what)
    with tempfile.TemporaryDirectory() as scratch:
        pictures = Path(scratch) / "pictures"
        tsd_sr.write_pictures(pictures, side, REPEATS + 1)
        precision = "fp16" if options.device == "cuda" else "fp32"
        if reference:
            seconds = tsd_sr.run_reference(models, pictures, options.device, precision, Path(reference))
        else:
            seconds = tsd_sr.run_ours(models, pictures, options.device, precision, batch=4)
    peak = torch.cuda.max_memory_allocated() / MIB if options.device == "cuda" else 0.0
    return {"seconds": statistics.median(seconds[1:]), "peak_mb": peak}


def tsd_published(what: str, options: argparse.Namespace) -> dict[str, float]:
    return tsd(what, options, options.tsd_sr)


def family(what: str, options: argparse.Namespace) -> dict[str, float]:
    name, side = what.rsplit(", ", 1)
    dtype = torch.float16 if options.device == "cuda" else torch.float32
    run = families.ours(name, Path(options.files) / "sd21", options.device, dtype)
    return timed(lambda: run(int(side)), options.device)


def vae(what: str, options: argparse.Namespace) -> dict[str, float]:
    """A picture of 2048 px, whose maps fit into the device's memory or not at all."""
    import seamless_vae
    from onestep_sr.sr_models.codecs import seamless

    cuda = options.device == "cuda"
    autoencoder = seamless_vae.diffusers_vae(torch.float16 if cuda else torch.float32).to(options.device)
    side = 64 if options.small else 2048
    latent = seamless_vae.canvas_of("decode", side).to(options.device)
    budget = 16 * 2**30 if what == "on the device" else 2**30
    return timed(lambda: seamless.decode(autoencoder, latent, budget=budget), options.device)


def training(what: str, options: argparse.Namespace) -> dict[str, float]:
    from onestep_sr.sr_models.training.draws import Draws

    if options.small:
        small = {"num_layers": 2, "num_attention_heads": 2, "caption_projection_dim": 128}
        training_memory.TRANSFORMER_CONFIG.update(small)
        training_memory.VAE_CONFIG["block_out_channels"] = NARROW
    made = training_memory.objective(checkpointing=True, early=False).to_empty(device=options.device)
    generator = torch.Generator(options.device).manual_seed(0)
    with torch.no_grad():
        for weight in [*made.parameters(), *made.buffers()]:
            if weight.is_floating_point():
                weight.normal_(0, 0.02, generator=generator)
    optimizer = torch.optim.AdamW([dict(group) for group in made.groups()])
    crop, count = 64 if options.small else 512, int(what)
    batch = {name: value.to(options.device) for name, value in training_memory.batch(crop, count).items()}

    def step() -> None:
        with torch.autocast(options.device, torch.bfloat16):
            losses = made(batch, Draws(0, range(count), torch.device(options.device)), 0)
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    return timed(step, options.device)


MEASURES = {
    "bundled": bundled,
    "tsd-sr": tsd,
    "tsd-sr-published": tsd_published,
    "family": family,
    "vae": vae,
    "training": training,
}


# The run


def measurements(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Kinds and what is measured of each, the most wanted first."""
    sides = ("128",) if options.small else ("512", "1024", "2048", "4096")
    found = [("bundled", "4K"), *(("tsd-sr", side) for side in sides)]
    found += [("tsd-sr-published", side) for side in sides[:2] if options.tsd_sr]
    found += [("vae", "on the device"), ("vae", "in main memory"), ("training", "1"), ("training", "2")]
    names = [families.BARE, *families.cases()]
    return found + [("family", f"{name}, {side}") for side in sides[:3:2] for name in names]


def sd3_folder(small: bool) -> str:
    """By its name, the published script's runner knows the LoRA's rank."""
    return "small" if small else "full"


def write_files(folder: Path, small: bool) -> None:
    if small:
        small_sd3.write(folder / sd3_folder(small), NARROW)
    else:
        tsd_sr.write_models(folder / sd3_folder(small), full=True)
    families.write_files(folder / "sd21", not small)


def in_own_process(kind: str, what: str, folder: Path, end: float, options: argparse.Namespace) -> Row:
    command = [sys.executable, __file__, "--one", kind, what, "--files", str(folder), "--device", options.device]
    command += ["--small"] if options.small else []
    command += ["--tsd-sr", options.tsd_sr] if options.tsd_sr else []
    left = end - time.monotonic()
    if left <= 0:
        return Row(kind, what, failed="no time left")
    try:
        result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired:
        return Row(kind, what, failed="no time left")
    if result.returncode:
        return Row(kind, what, failed=(result.stderr.strip().splitlines() or ["ended without a message"])[-1])
    return Row(kind, what, **json.loads(result.stdout.splitlines()[-1]))


def run_tests(folder: Path, end: float) -> Row:
    report = folder / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={report}", str(ROOT / "tests" / "gpu")]
    begin = time.monotonic()
    try:
        subprocess.run(command, check=False, cwd=ROOT, capture_output=True, timeout=max(1.0, end - begin))
    except subprocess.TimeoutExpired:
        return Row("tests", "marked gpu", failed="no time left")
    if not report.exists():
        return Row("tests", "marked gpu", failed="did not start")
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    bad = [case.get("name", "") for case in cases if _is_bad(case)]
    skipped = sum(case.find("skipped") is not None for case in cases)
    words = f"{len(cases) - skipped - len(bad)} passed, {skipped} skipped, {len(bad)} failed"
    return Row("tests", words, time.monotonic() - begin, failed=", ".join(bad))


def _is_bad(case: ElementTree.Element) -> bool:
    return case.find("failure") is not None or case.find("error") is not None


def rows(options: argparse.Namespace) -> Iterator[Row]:
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield run_tests(folder, end)
        write_files(folder, options.small)
        for kind, what in measurements(options):
            yield in_own_process(kind, what, folder, end, options)


def table(found: list[Row], device: str) -> str:
    lines = [f"{device}, torch {torch.__version__}", ""]
    lines += ["| | seconds | goal | peak memory |", "| --- | --- | --- | --- |"]
    for row in found:
        title = f"{TITLES.get(row.kind, row.kind)} {row.what}"
        goal = GOALS.get((row.kind, row.what))
        seconds = row.failed or f"{row.seconds:.3f}"
        peak = f"{row.peak_mb:.0f} MiB" if row.peak_mb else ""
        lines.append(f"| {title} | {seconds} | {f'at most {goal:g}' if goal else ''} | {peak} |")
    seconds_of = {(row.kind, row.what): row.seconds for row in found if row.seconds}
    for first, second, limit in RATIOS:
        if first in seconds_of and second in seconds_of:
            ratio = seconds_of[first] / seconds_of[second]
            names = [f"{TITLES[kind]} {what}" for kind, what in (first, second)]
            lines += ["", f"{names[0]} / {names[1]}: {ratio:.2f} (at most {limit:g})"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu-results"))
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--tsd-sr")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--files", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        kind, what = options.one
        print(json.dumps(MEASURES[kind](what, options)))
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("No CUDA GPU was found: run this on a machine with one, or try it with --small --device cpu.")
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {os.cpu_count()} cores"
    options.output.mkdir(parents=True, exist_ok=True)
    found: list[Row] = []
    for row in rows(options):
        found.append(row)
        (options.output / "results.md").write_text(table(found, device), encoding="utf-8")
        (options.output / "results.json").write_text(json.dumps([asdict(each) for each in found], indent=1))
        print(table(found[-1:], device).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
