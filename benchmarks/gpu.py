"""Everything that only a GPU can show, with one command: `make gpu`, or

    PYTHONPATH=tests python benchmarks/gpu.py [--output gpu-results] [--minutes 8] [--only KIND ...] [--tsd-sr FOLDER]

It runs the tests marked `gpu`, then measures seconds and peak memory on random weights, made on the spot: the bundled
model to 4K, TSD-SR on a Stable Diffusion 3 medium, the seamless VAE with its maps on the GPU and in main memory,
training steps on Stable Diffusion 3 medium, and the families on Stable Diffusion 2.1. The sizes of one model share a
process: for each the median of three runs after a warm-up. `results.md` and `results.json` are written after each
process, so a run that is stopped keeps what it has. What has no time left within `--minutes`, and what fails, is named
in the table; `log.txt` has the tests' output, and all that a failed measurement printed.

`--only` chooses from: tests, bundled, tsd-sr, tsd-sr-published, vae, training, family.
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
from collections.abc import Callable, Iterator, Sequence
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
SD21 = "sd21"  # the folder of the families' files
NARROW = (32, 32, 64, 64)  # the widths of a VAE that is only tried
Figures = dict[str, float]  # `seconds` and `peak_mb` of the device
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


# What is measured: each function runs in its own process and gives the figures of each case in turn


def timed(work: Callable[[], Any], device: str) -> Figures:
    seconds = []
    forget_peak()
    for _ in range(REPEATS + 1):
        synchronize(device)
        begin = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return figures(seconds)


def figures(seconds: Sequence[float]) -> Figures:
    """The first of the seconds is a warm-up."""
    peak = torch.cuda.max_memory_allocated() / MIB if torch.cuda.is_available() else 0.0
    return {"seconds": statistics.median(seconds[1:]), "peak_mb": peak}


def forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def bundled(cases: Sequence[str], options: argparse.Namespace) -> Iterator[Figures]:
    from onestep_sr.sr_models.core.devices import default_dtype
    from onestep_sr.sr_models.core.upscale import upscale
    from onestep_sr.sr_models.families.loading import load

    device = torch.device(options.device)
    model = load(dtype=default_dtype(device)).to(device).model
    image = torch.rand(1, 3, 54, 96) if options.small else torch.rand(1, 3, 540, 960)
    for _ in cases:
        yield timed(lambda: upscale(model, image), options.device)


def tsd(cases: Sequence[str], options: argparse.Namespace, reference: Path | None = None) -> Iterator[Figures]:
    models = Path(options.files) / sd3_folder(options.small)
    precision = "fp16" if options.device == "cuda" else "fp32"
    model = None if reference else tsd_sr.open_ours(models, options.device, precision)
    for side in map(int, cases):
        with tempfile.TemporaryDirectory() as scratch:
            pictures = Path(scratch) / "pictures"
            tsd_sr.write_pictures(pictures, side, REPEATS + 1)
            forget_peak()
            if reference:
                yield figures(tsd_sr.run_reference(models, pictures, options.device, precision, reference))
            else:
                yield figures(tsd_sr.run_ours(model, pictures, batch=4))


def tsd_published(cases: Sequence[str], options: argparse.Namespace) -> Iterator[Figures]:
    return tsd(cases, options, options.tsd_sr)


def family(cases: Sequence[str], options: argparse.Namespace) -> Iterator[Figures]:
    files, name = Path(options.files) / SD21, cases[0].rsplit(", ", 1)[0]
    if name != families.BARE:
        families.write_case(files, name, not options.small)
    dtype = torch.float16 if options.device == "cuda" else torch.float32
    run = families.ours(name, files, options.device, dtype)
    for case in cases:
        side = int(case.rsplit(", ", 1)[1])
        yield timed(lambda side=side: run(side), options.device)


def vae(cases: Sequence[str], options: argparse.Namespace) -> Iterator[Figures]:
    """A picture of 2048 px, whose maps fit into the device's memory or not at all."""
    import seamless_kinds
    from onestep_sr.sr_models.codecs import seamless

    cuda = options.device == "cuda"
    autoencoder = seamless_kinds.diffusers_vae(torch.float16 if cuda else torch.float32).to(options.device)
    side = 64 if options.small else 2048
    latent = seamless_kinds.canvas_of("decode", (side, side)).to(options.device)
    for case in cases:
        budget = 16 * 2**30 if case == "on the device" else 2**30
        yield timed(lambda budget=budget: seamless.decode(autoencoder, latent, budget=budget), options.device)


def training(cases: Sequence[str], options: argparse.Namespace) -> Iterator[Figures]:
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

    def step(batch: dict[str, torch.Tensor]) -> None:
        with torch.autocast(options.device, torch.bfloat16):
            losses = made(batch, Draws(0, range(len(batch["hr"])), torch.device(options.device)), 0)
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    for count in map(int, cases):
        made_up = training_memory.batch(64 if options.small else 512, count)
        batch = {name: value.to(options.device) for name, value in made_up.items()}
        yield timed(lambda batch=batch: step(batch), options.device)


MEASURES = {
    "bundled": bundled,
    "tsd-sr": tsd,
    "tsd-sr-published": tsd_published,
    "vae": vae,
    "training": training,
    "family": family,
}


# The run


def measurements(options: argparse.Namespace) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Kinds, and the cases of each that share a process, the most wanted first."""
    sides = ("128",) if options.small else ("512", "1024", "2048", "4096")
    yield "bundled", ("4K",)
    yield "tsd-sr", sides
    for side in sides[:2] if options.tsd_sr else ():  # the script loads the models at each size
        yield "tsd-sr-published", (side,)
    yield "vae", ("on the device", "in main memory")
    yield "training", ("1", "2")
    for name in (families.BARE, *families.cases()):
        yield "family", tuple(f"{name}, {side}" for side in sides[:3:2])


def sd3_folder(small: bool) -> str:
    """By its name, the published script's runner knows the LoRA's rank."""
    return "small" if small else "full"


def write_files(kind: str, folder: Path, small: bool) -> None:
    """What the processes of this kind share: the first of them writes it."""
    sd3, sd21 = folder / sd3_folder(small), folder / SD21
    if kind.startswith("tsd-sr") and not sd3.exists():
        if small:
            small_sd3.write(sd3, NARROW)
        else:
            tsd_sr.write_models(sd3, full=True)
    if kind == "family" and not sd21.exists():
        families.write_base(sd21 / "base", not small)


def in_own_process(
    kind: str, cases: Sequence[str], folder: Path, end: float, options: argparse.Namespace
) -> Iterator[Row]:
    command = [sys.executable, __file__, "--one", kind, *cases, "--files", str(folder), "--device", options.device]
    command += ["--small"] if options.small else []
    command += ["--tsd-sr", str(options.tsd_sr)] if options.tsd_sr else []
    log, reason = folder / "one.txt", "no time left"
    with log.open("w") as errors:
        try:
            limit = max(0.1, end - time.monotonic())
            result = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=errors, timeout=limit)
            output, reason = result.stdout, ""
        except subprocess.TimeoutExpired as stopped:
            output = stopped.stdout or b""
    found = [json.loads(line) for line in output.decode().splitlines() if line.startswith('{"seconds"')]
    for case, each in zip(cases, found, strict=False):
        yield Row(kind, case, **each)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if cases[len(found) :] and lines:
        note(options, f"{kind} {', '.join(cases)}", "\n".join(lines))
    for case in cases[len(found) :]:
        yield Row(kind, case, failed=reason or (lines or ["ended without a message"])[-1])


def note(options: argparse.Namespace, title: str, text: str) -> None:
    with (options.output / "log.txt").open("a", encoding="utf-8") as file:
        file.write(f"{title}\n\n{text}\n\n\n")


def run_tests(folder: Path, end: float, options: argparse.Namespace) -> Row:
    report = folder / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={report}", str(ROOT / "tests" / "gpu")]
    begin = time.monotonic()
    limit = max(1.0, (end - begin) / 2)  # the rest is for the figures
    try:
        result = subprocess.run(command, check=False, cwd=ROOT, stdout=subprocess.PIPE, timeout=limit)
        note(options, "tests", result.stdout.decode())
    except subprocess.TimeoutExpired as stopped:
        note(options, "tests", (stopped.stdout or b"").decode())
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
        if "tests" in options.only:
            yield run_tests(folder, end, options)
        for kind, cases in measurements(options):
            if kind in options.only:
                yield from in_own_process(kind, cases, folder, end, options)


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
    parser.add_argument("--only", nargs="+", choices=("tests", *MEASURES), default=("tests", *MEASURES), metavar="KIND")
    parser.add_argument("--tsd-sr", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--files", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        kind, *cases = options.one
        write_files(kind, Path(options.files), options.small)
        for found in MEASURES[kind](cases, options):
            print(json.dumps(found), flush=True)
        return
    options.tsd_sr = options.tsd_sr and options.tsd_sr.resolve()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("No CUDA GPU was found: run this on a machine with one, or try it with --small --device cpu.")
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {os.cpu_count()} cores"
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "log.txt").unlink(missing_ok=True)
    found: list[Row] = []
    for row in rows(options):
        found.append(row)
        (options.output / "results.md").write_text(table(found, device), encoding="utf-8")
        (options.output / "results.json").write_text(json.dumps([asdict(each) for each in found], indent=1))
        print(table(found[-1:], device).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
