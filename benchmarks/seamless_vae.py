"""Compare the seamless VAE with untiled decoding and ComfyUI's stock tiling: time, peak memory, difference.

    python benchmarks/seamless_vae.py [--side 640] [--dtype float32 | bfloat16] [--budget 2048]
    python benchmarks/seamless_vae.py --memory 512 1024 2048 --budgets 64 256 --width 16
    python benchmarks/seamless_vae.py --precision 512 --width 32
    python benchmarks/seamless_vae.py --exact 1 9 [--kinds ltx2]
    python benchmarks/seamless_vae.py --comfyui ~/comfy/ComfyUI [--tile 256] [--kind wan]
    python benchmarks/seamless_vae.py --paired 256 512 1024 [--dtype bfloat16]
    python benchmarks/seamless_vae.py --video 17 49 [--dtype bfloat16]

A VAE with Stable Diffusion 3's architecture (83.8 million parameters, 16 channels) and random weights on the CPU. Each
measurement runs in its own process: the median over the repeats after a small warm-up, and the peak of resident memory
above the memory before the run (Linux). Differences are from the untiled result in the same precision. `--paired SIDES`
takes turns with untiled in one process and counts its CPU seconds, which other work on the machine changes less.
`--video FRAMES` runs a VAE for videos, Wan 2.1's or `--kind`, an eighth as wide, on 480 x 832 px. `--memory SIDES` and
`--precision SIDE` run all `--kinds`: the peak of untiled and of seamless at each budget, and bfloat16 beside float32,
without a time. `--exact FRAMES` finds the largest difference of all `--kinds` on small odd sizes, in few and in
many bands.
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
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from seamless_kinds import ANY_SIDE, CLAMPED, FULL_WIDTH, KINDS, canvas_of, comfyui_vae, diffusers_vae
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("untiled", "seamless")
VIDEO_SIZE, VIDEO_WIDTH = (480, 832), 16
SIDES_IN_LATENT = (5, 7)  # of --exact


def work(method: str, direction: str, options: argparse.Namespace) -> Callable[[Tensor], Tensor]:
    dtype = getattr(torch, options.dtype)
    if method.startswith("ComfyUI"):
        run = comfyui_encoding if direction == "encode" else comfyui_decoding
        return run(method, comfyui_vae(dtype, options.kind), options)
    autoencoder = diffusers_vae(dtype, options.kind, options.width)
    if method == "untiled":
        return untiled(autoencoder, direction)
    return in_bands(autoencoder, direction, options.budget * 2**20)


def untiled(autoencoder: Any, direction: str) -> Callable[[Tensor], Tensor]:
    dtype = next(autoencoder.parameters()).dtype
    if direction == "decode":
        return lambda latent: autoencoder.decode(latent.to(dtype)).sample.float()

    def encode(image: Tensor) -> Tensor:
        found = autoencoder.encode(image.to(dtype))
        return (found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents).float()

    return encode


def in_bands(autoencoder: Any, direction: str, budget: int) -> Callable[[Tensor], Tensor]:
    from onestep_sr.sr_models.codecs import seamless

    function = getattr(seamless, direction)
    return lambda canvas: function(autoencoder, canvas, budget=budget)


def comfyui_decoding(method: str, vae: Any, options: argparse.Namespace) -> Callable[[Tensor], Tensor]:
    """Stock methods clamp to [0, 1], so all results use that range."""
    if method == "ComfyUI untiled":
        return lambda latent: vae.decode(comfyui_latent(vae, latent)).movedim(-1, 1)
    if method == "ComfyUI tiled":
        side = options.tile // vae.spacial_compression_decode()
        tiles = {"tile_x": side, "tile_y": side, "overlap": side // 4}
        return lambda latent: vae.decode_tiled(comfyui_latent(vae, latent), **tiles).movedim(-1, 1)
    run = in_bands(vae.first_stage_model, "decode", options.budget * 2**20)
    return lambda latent: (run(comfyui_latent(vae, latent)) / 2 + 0.5).clamp(0, 1)


def comfyui_encoding(method: str, vae: Any, options: argparse.Namespace) -> Callable[[Tensor], Tensor]:
    """Stock methods take pictures (1, H, W, C) in [0, 1]."""
    if method == "ComfyUI untiled":
        return lambda image: vae.encode(stock_layout(image))
    if method == "ComfyUI tiled":
        tiles = {"tile_x": options.tile, "tile_y": options.tile, "overlap": options.tile // 4}
        return lambda image: vae.encode_tiled(stock_layout(image), **tiles)
    return in_bands(vae.first_stage_model, "encode", options.budget * 2**20)


def comfyui_latent(vae: Any, latent: Tensor) -> Tensor:
    """In 2x2 patches for Flux.2."""
    return latent if latent.shape[1] == vae.latent_channels else F.pixel_unshuffle(latent, 2)


def stock_layout(image: Tensor) -> Tensor:
    """A picture, or the only frame of a video."""
    return (image.reshape(1, 3, *image.shape[-2:]) / 2 + 0.5).movedim(1, -1)


def resident(line: str) -> float:
    """A value of the process's status in MB: VmRSS (current) or VmHWM (peak)."""
    status = Path("/proc/self/status").read_text()
    return next(int(text.split()[1]) / 1024 for text in status.splitlines() if text.startswith(line))


@torch.inference_mode()
def measure(options: argparse.Namespace) -> dict[str, float]:
    method, direction, side, target = options.one
    torch.set_num_threads(options.threads)
    convert, seconds = work(method, direction, options), []
    size = VIDEO_SIZE if options.frames else (int(side), int(side))
    canvas = canvas_of(direction, size, options.kind, max(1, options.frames))
    convert(canvas_of(direction, (64, 64), options.kind))
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    for _ in range(options.repeats):
        begin, processor = time.perf_counter(), time.process_time()
        torch.save(convert(canvas), target)
        seconds.append((time.perf_counter() - begin, time.process_time() - processor))
    elapsed, processor = (statistics.median(each) for each in zip(*seconds, strict=True))
    return {"seconds": elapsed, "cpu_seconds": processor, "peak_mb": resident("VmHWM") - before}


def in_own_process(
    options: argparse.Namespace, method: str, direction: str, side: int, folder: Path
) -> tuple[dict[str, float], Tensor]:
    target = folder / "result.pt"
    command = [options.python, __file__, "--one", method, direction, str(side), str(target)]
    for name in ("threads", "repeats", "budget", "dtype", "kind", "width", "frames", "tile"):
        command += [f"--{name}", str(getattr(options, name))]
    if not (folder / "onestep_sr").is_symlink():
        (folder / "onestep_sr").symlink_to(ROOT)
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONWARNINGS": "ignore"}
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=options.folder)
    return json.loads(result.stdout.splitlines()[-1]), torch.load(target)


@torch.no_grad()
def paired(options: argparse.Namespace) -> None:
    """Untiled and seamless in turn, in this process."""
    torch.set_num_threads(options.threads)
    print(f"CPU seconds, {options.dtype}, {options.threads} threads, budget {options.budget} MB")
    for direction in ("decode", "encode"):
        runs = [work(method, direction, options) for method in METHODS]
        for side in options.paired:
            canvas = canvas_of(direction, (side, side), options.kind)
            taken = [[seconds_of(run, canvas) for run in runs] for _ in range(options.repeats)]
            untiled, own = (statistics.median(each) for each in zip(*taken, strict=True))
            print(f"  {direction} {side:5} px: untiled {untiled:7.2f}, seamless {own:7.2f}, {own / untiled:.2f}x")


def seconds_of(run: Callable[[Tensor], Tensor], canvas: Tensor) -> float:
    begin = time.process_time()
    run(canvas)
    return time.process_time() - begin


def video(options: argparse.Namespace) -> None:
    options.kind, options.width = options.kind if KINDS[options.kind].frames else "wan", VIDEO_WIDTH
    print(f"{options.kind}, width {VIDEO_WIDTH}, {VIDEO_SIZE[0]} x {VIDEO_SIZE[1]} px", end=", ")
    print(f"{options.dtype}, budget {options.budget} MB")
    with tempfile.TemporaryDirectory() as name:
        for direction in ("decode", "encode"):
            for frames in options.video:
                options.frames = frames
                pairs = [in_own_process(options, method, direction, 0, Path(name)) for method in METHODS]
                (one, untiled), (own, result) = pairs
                result = as_untiled(result, direction, options.kind)
                print(f"  {direction} {frames} frames: {one['seconds']:.1f} s, {one['peak_mb']:.0f} MB;", end=" ")
                print(f"seamless {own['seconds']:.1f} s, {own['peak_mb']:.0f} MB,", difference(result, untiled, 2))


@torch.no_grad()
def exactness(options: argparse.Namespace) -> None:
    """The largest difference from untiled on sides that are odd in latent pixels, and odd themselves if they may be."""
    torch.set_num_threads(options.threads)
    for kind in options.kinds:
        autoencoder = diffusers_vae(torch.float32, kind, options.width)
        print(f"{kind}, {sum(weight.numel() for weight in autoencoder.parameters()) / 1e6:.0f} million parameters")
        for frames in options.exact if KINDS[kind].frames else [1]:
            for direction in ("decode", "encode"):
                rest = 3 if direction == "encode" and kind in ANY_SIDE else 0
                height, width = (side * KINDS[kind].factor + rest for side in SIDES_IN_LATENT)
                canvas = canvas_of(direction, (height, width), kind, frames)
                expected = untiled(autoencoder, direction)(canvas)
                print(f"  {direction}, {frames} frames, {height} x {width} px, std {expected.std():.2f}", end=": ")
                for budget, result in in_many_and_in_few_bands(autoencoder, direction, canvas, options.budget):
                    largest = (as_untiled(result, direction, kind) - expected).abs().max()
                    print(f"{largest:.1e} within {budget} MB", end="; ", flush=True)
                print()
        del autoencoder  # before the next one is made


def in_many_and_in_few_bands(
    autoencoder: Any, direction: str, canvas: Tensor, budget: int
) -> Iterator[tuple[int, Tensor]]:
    """The results with the smallest power of two that is enough, and with the budget."""
    from onestep_sr.sr_models.errors import UserError

    for megabytes in (2**exponent for exponent in range(20)):
        try:
            yield megabytes, in_bands(autoencoder, direction, megabytes * 2**20)(canvas)
            break
        except UserError:
            continue
    yield budget, in_bands(autoencoder, direction, budget * 2**20)(canvas)


def as_untiled(result: Tensor, direction: str, kind: str) -> Tensor:
    return result.clamp(-1, 1) if direction == "decode" and kind in CLAMPED else result


def difference(result: Tensor, untiled: Tensor, peak: float) -> str:
    return f"max difference {(result - untiled).abs().max():.1e}, PSNR {decibels(result, untiled, peak):.1f} dB"


def decibels(result: Tensor, untiled: Tensor, peak: float) -> float:
    return float(20 * torch.log10(peak / (result - untiled).square().mean().sqrt().clamp(min=1e-12)))


def compare(options: argparse.Namespace, direction: str, methods: tuple[str, ...], peak: float) -> None:
    """The first method is the reference."""
    with tempfile.TemporaryDirectory() as name:
        print(f"{direction} {options.side} px, {options.kind}, {options.dtype}, budget {options.budget} MB")
        first, untiled = in_own_process(options, methods[0], direction, options.side, Path(name))
        print(f"  {methods[0]:16} {costs(first)}", flush=True)
        for method in methods[1:]:
            own, result = in_own_process(options, method, direction, options.side, Path(name))
            ratio = own["cpu_seconds"] / first["cpu_seconds"]
            print(
                f"  {method:16} {costs(own)}, {ratio:.2f}x the CPU time,", difference(result, untiled, peak), flush=True
            )


def costs(own: dict[str, float]) -> str:
    return f"{own['seconds']:7.2f} s, CPU {own['cpu_seconds']:7.2f} s, peak {own['peak_mb']:5.0f} MB"


def memory_curve(options: argparse.Namespace) -> None:
    """Peaks above the memory before the run, the result included."""
    options.repeats = 1
    print(f"peak MB of decoding, {options.dtype}, {options.width} channels")
    with tempfile.TemporaryDirectory() as name:
        for kind in options.kinds:
            options.kind = kind
            for side in options.memory:
                own, _ = in_own_process(options, "untiled", "decode", side, Path(name))
                print(f"  {options.kind:5} {side:5} px: untiled {own['peak_mb']:5.0f}", end="", flush=True)
                for budget in options.budgets:
                    options.budget = budget
                    own, _ = in_own_process(options, "seamless", "decode", side, Path(name))
                    print(f", within {budget} {own['peak_mb']:5.0f}", end="", flush=True)
                print(f" (the result is {3 * side * side * 4 / 2**20:.0f})")


@torch.no_grad()
def precision(options: argparse.Namespace) -> None:
    """bfloat16, both ways, and float32 untiled: how far each is from each other, per kind."""
    torch.set_num_threads(options.threads)
    for kind in options.kinds:
        options.kind = kind
        for direction in ("decode", "encode"):
            canvas = canvas_of(direction, (options.precision,) * 2, options.kind)
            results = []
            for options.dtype, method in (("float32", "untiled"), ("bfloat16", "untiled"), ("bfloat16", "seamless")):
                result = work(method, direction, options)(canvas.bfloat16().float())
                results.append(as_untiled(result, direction, options.kind))
            exact, untiled, own = results
            peak = float(exact.max() - exact.min())
            print(f"{options.kind:5} {direction} {options.precision} px: seamless from untiled", end=" ")
            print(f"{decibels(own, untiled, peak):.1f} dB; from float32: untiled", end=" ")
            print(f"{decibels(untiled, exact, peak):.1f} dB, seamless {decibels(own, exact, peak):.1f} dB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=640, help="side of the picture in pixels")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--budget", type=int, default=2048, help="MB")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kind", choices=KINDS, default="sd3")
    kinds: Any = {"choices": KINDS, "nargs": "+", "default": ["sd3", "flux2", "wan"]}
    parser.add_argument("--kinds", **kinds, help="of --memory, --precision and --exact")
    parser.add_argument("--width", type=int, default=FULL_WIDTH, help="channels at the picture's resolution")
    parser.add_argument("--frames", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--memory", type=int, nargs="+", metavar="SIDE", help="only measure peak memory at these sides")
    parser.add_argument("--budgets", type=int, nargs="+", default=[64, 256], help="of --memory, in MB")
    parser.add_argument("--precision", type=int, metavar="SIDE", help="only compare bfloat16 with float32 at this side")
    parser.add_argument("--exact", type=int, nargs="+", metavar="FRAMES", help="only the largest differences")
    parser.add_argument("--paired", type=int, nargs="+", metavar="SIDE", help="only compare in turns at these sides")
    parser.add_argument(
        "--video", type=int, nargs="+", metavar="FRAMES", help="only compare on videos of these lengths"
    )
    parser.add_argument("--comfyui", type=Path, help="a ComfyUI checkout with .venv: only compare with its tiling")
    parser.add_argument("--tile", type=int, default=256, help="tile side of ComfyUI's tiling, in pixels")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.folder, options.python = options.comfyui, sys.executable
    if options.one:
        print(json.dumps(measure(options)))
    elif options.memory:
        memory_curve(options)
    elif options.precision:
        precision(options)
    elif options.exact:
        exactness(options)
    elif options.paired:
        paired(options)
    elif options.video:
        video(options)
    elif options.comfyui:
        options.python = str(options.comfyui / ".venv" / "bin" / "python")
        compare(options, "decode", ("ComfyUI untiled", "ComfyUI tiled", "ComfyUI seamless"), 1)
        compare(options, "encode", ("ComfyUI untiled", "ComfyUI tiled", "ComfyUI seamless"), 2)
    else:
        compare(options, "decode", METHODS, 2)
        compare(options, "encode", METHODS, 2)


if __name__ == "__main__":
    main()
