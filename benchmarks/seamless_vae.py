"""Compare the seamless VAE with untiled decoding and ComfyUI's stock tiling: time, peak memory, difference.

    python benchmarks/seamless_vae.py [--side 640] [--dtype float32 | bfloat16] [--budget 2048]
    python benchmarks/seamless_vae.py --memory 512 1024 2048 --budget 512 --dtype bfloat16
    python benchmarks/seamless_vae.py --comfyui ~/comfy/ComfyUI [--tile 32]
    python benchmarks/seamless_vae.py --paired 256 512 1024 [--dtype bfloat16]
    python benchmarks/seamless_vae.py --video 17 49 [--dtype bfloat16]

A VAE with Stable Diffusion 3's architecture (83.8 million parameters, 16 channels) and random weights on the CPU. Each
measurement runs in its own process: the median over the repeats after a small warm-up, and the peak of resident memory
above the memory before the run (Linux). Differences are from the untiled result in the same precision. `--paired SIDES`
takes turns with untiled in one process and counts its CPU seconds, which other work on the machine changes less.
`--video FRAMES` runs Wan 2.1's VAE, an eighth as wide, on 480 x 832 px.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
FACTOR, LATENT_CHANNELS = 8, 16
WIDTHS = (128, 256, 512, 512)
METHODS = ("untiled", "seamless")
VIDEO_SIZE, VIDEO_WIDTH = (480, 832), 12


def small_changes(autoencoder: Any) -> None:
    """Change the norms of a new network, whose weights of 1 and biases of 0 would hide errors."""
    generator = torch.Generator().manual_seed(1)
    for parameter in autoencoder.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def diffusers_vae(dtype: torch.dtype) -> Any:
    from diffusers import AutoencoderKL
    from diffusers.utils import logging

    logging.set_verbosity_error()
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * len(WIDTHS),
        "up_block_types": ("UpDecoderBlock2D",) * len(WIDTHS),
        "block_out_channels": WIDTHS,
        "latent_channels": LATENT_CHANNELS,
    }
    autoencoder: Any = AutoencoderKL(layers_per_block=2, use_quant_conv=False, use_post_quant_conv=False, **settings)
    small_changes(autoencoder)
    return autoencoder.eval().requires_grad_(False).to(dtype)


def wan_vae(dtype: torch.dtype) -> Any:
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    autoencoder: Any = AutoencoderKLWan(base_dim=VIDEO_WIDTH)
    small_changes(autoencoder)
    return autoencoder.eval().requires_grad_(False).to(dtype)


def comfyui_vae(dtype: torch.dtype) -> Any:
    """The same weights in ComfyUI's VAE object; runs in ComfyUI's interpreter and folder."""
    sys.argv = [sys.argv[0], "--cpu"]
    sys.path.insert(0, ".")
    import comfy.options  # noqa: TID251

    comfy.options.enable_args_parsing()
    import comfy.sd  # noqa: TID251

    return comfy.sd.VAE(sd=torch.load(os.environ["VAE_WEIGHTS"]), dtype=dtype)


def work(method: str, direction: str, dtype: torch.dtype, budget: int) -> Callable[[Tensor], Tensor]:
    if method.startswith("ComfyUI"):
        return comfyui_work(method, dtype, budget)
    autoencoder = wan_vae(dtype) if method.startswith("Wan") else diffusers_vae(dtype)
    method = method.removeprefix("Wan ")
    if method == "untiled" and direction == "decode":
        return lambda latent: autoencoder.decode(latent.to(dtype)).sample.float()
    if method == "untiled":
        return lambda image: autoencoder.encode(image.to(dtype)).latent_dist.mode().float()
    from onestep_sr.sr_models.codecs import seamless

    function = getattr(seamless, direction)
    return lambda canvas: function(autoencoder, canvas, budget=budget)


def comfyui_work(method: str, dtype: torch.dtype, budget: int) -> Callable[[Tensor], Tensor]:
    """Decoding. Stock methods clamp to [0, 1], so all results use that range."""
    vae = comfyui_vae(dtype)
    tile = int(os.environ["VAE_TILE"])
    if method == "ComfyUI untiled":
        return lambda latent: vae.decode(latent).movedim(-1, 1)
    if method == "ComfyUI tiled":
        return lambda latent: vae.decode_tiled(latent, tile_x=tile, tile_y=tile, overlap=tile // 4).movedim(-1, 1)
    from onestep_sr.sr_models.codecs import seamless

    network = vae.first_stage_model
    return lambda latent: (seamless.decode(network, latent, budget=budget) / 2 + 0.5).clamp(0, 1)


def video_of(direction: str, frames: int) -> Tensor:
    """Values in the middle, because diffusers clamps what it decodes."""
    generator, (height, width) = torch.Generator().manual_seed(2), VIDEO_SIZE
    if direction == "encode":
        return torch.rand(1, 3, frames, height, width, generator=generator) * 2 - 1
    shape = (1, LATENT_CHANNELS, 1 + (frames - 1) // 4, height // FACTOR, width // FACTOR)
    return torch.randn(shape, generator=generator) / 4


def canvas_of(direction: str, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    if direction == "encode":
        return torch.rand(1, 3, side, side, generator=generator) * 2 - 1
    return torch.randn(1, LATENT_CHANNELS, side // FACTOR, side // FACTOR, generator=generator)


def resident(line: str) -> float:
    """A value of the process's status in MB: VmRSS (current) or VmHWM (peak)."""
    status = Path("/proc/self/status").read_text()
    return next(int(text.split()[1]) / 1024 for text in status.splitlines() if text.startswith(line))


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, float]:
    method, direction, side, target = options.one
    torch.set_num_threads(options.threads)
    convert = work(method, direction, getattr(torch, options.dtype), options.budget * 2**20)
    is_video, seconds = method.startswith("Wan"), []
    canvas = video_of(direction, int(side)) if is_video else canvas_of(direction, int(side))
    convert(video_of(direction, 1) if is_video else canvas_of(direction, 64))
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    for _ in range(options.repeats):
        begin = time.perf_counter()
        torch.save(convert(canvas), target)
        seconds.append(time.perf_counter() - begin)
    return {"seconds": statistics.median(seconds), "peak_mb": resident("VmHWM") - before}


def in_own_process(
    options: argparse.Namespace, method: str, direction: str, side: int, folder: Path
) -> tuple[dict[str, float], Tensor]:
    target = folder / "result.pt"
    command = [options.python, __file__, "--one", method, direction, str(side), str(target)]
    for name in ("threads", "repeats", "budget", "dtype"):
        command += [f"--{name}", str(getattr(options, name))]
    if not (folder / "onestep_sr").is_symlink():
        (folder / "onestep_sr").symlink_to(ROOT)
    environment = os.environ | {"PYTHONPATH": str(folder), "VAE_TILE": str(options.tile)}
    environment |= {"VAE_WEIGHTS": str(folder / "vae.pt"), "PYTHONWARNINGS": "ignore"}
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=options.folder)
    return json.loads(result.stdout.splitlines()[-1]), torch.load(target)


@torch.no_grad()
def paired(options: argparse.Namespace) -> None:
    """Untiled and seamless in turn, in this process."""
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    print(f"CPU seconds, {options.dtype}, {options.threads} threads, budget {options.budget} MB")
    for direction in ("decode", "encode"):
        runs = [work(method, direction, dtype, options.budget * 2**20) for method in METHODS]
        for side in options.paired:
            canvas = canvas_of(direction, side)
            taken = [[seconds_of(run, canvas) for run in runs] for _ in range(options.repeats)]
            untiled, own = (statistics.median(each) for each in zip(*taken, strict=True))
            print(f"  {direction} {side:5} px: untiled {untiled:7.2f}, seamless {own:7.2f}, {own / untiled:.2f}x")


def seconds_of(run: Callable[[Tensor], Tensor], canvas: Tensor) -> float:
    begin = time.process_time()
    run(canvas)
    return time.process_time() - begin


def video(options: argparse.Namespace) -> None:
    print(f"Wan 2.1, {VIDEO_WIDTH} channels, {VIDEO_SIZE[0]} x {VIDEO_SIZE[1]} px", end=", ")
    print(f"{options.dtype}, budget {options.budget} MB")
    with tempfile.TemporaryDirectory() as name:
        for direction in ("decode", "encode"):
            for frames in options.video:
                pairs = [in_own_process(options, f"Wan {m}", direction, frames, Path(name)) for m in METHODS]
                (one, untiled), (own, result) = pairs
                result = result.clamp(-1, 1) if direction == "decode" else result
                print(f"  {direction} {frames} frames: {one['seconds']:.1f} s, {one['peak_mb']:.0f} MB;", end=" ")
                print(f"seamless {own['seconds']:.1f} s, {own['peak_mb']:.0f} MB,", difference(result, untiled, 2))


def difference(result: Tensor, untiled: Tensor, peak: float) -> str:
    error = (result - untiled).abs()
    decibels = 20 * torch.log10(peak / error.square().mean().sqrt().clamp(min=1e-12))
    return f"max difference {error.max():.1e}, PSNR {decibels:.1f} dB"


def compare(options: argparse.Namespace, direction: str, methods: tuple[str, ...], peak: float) -> None:
    """The first method is the reference."""
    with tempfile.TemporaryDirectory() as name:
        if options.comfyui:
            save_original_names(Path(name) / "vae.pt")
        first, untiled = in_own_process(options, methods[0], direction, options.side, Path(name))
        print(f"{direction} {options.side} px, {options.dtype}, budget {options.budget} MB")
        print(f"  {methods[0]:16} {first['seconds']:7.2f} s, peak {first['peak_mb']:5.0f} MB")
        for method in methods[1:]:
            own, result = in_own_process(options, method, direction, options.side, Path(name))
            ratio = own["seconds"] / first["seconds"]
            print(f"  {method:16} {own['seconds']:7.2f} s, peak {own['peak_mb']:5.0f} MB,", end=" ")
            print(f"{ratio:.2f}x the time, {difference(result, untiled, peak)}")


def save_original_names(path: Path) -> None:
    """Save the weights with diffusers' names, which ComfyUI also reads."""
    torch.save(diffusers_vae(torch.float32).state_dict(), path)


def memory_curve(options: argparse.Namespace) -> None:
    print(f"decode within {options.budget} MB, {options.dtype}")
    with tempfile.TemporaryDirectory() as name:
        for side in options.memory:
            own, _ = in_own_process(options, "seamless", "decode", side, Path(name))
            result = 3 * side * side * 4 / 2**20
            print(f"  {side:5} px: {own['seconds']:7.2f} s, peak {own['peak_mb']:5.0f} MB (the result is {result:.0f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=640, help="side of the picture in pixels")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--budget", type=int, default=2048, help="MB")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="+", metavar="SIDE", help="only measure peak memory at these sides")
    parser.add_argument("--paired", type=int, nargs="+", metavar="SIDE", help="only compare in turns at these sides")
    parser.add_argument(
        "--video", type=int, nargs="+", metavar="FRAMES", help="only compare on videos of these lengths"
    )
    parser.add_argument("--comfyui", type=Path, help="a ComfyUI checkout with .venv: only compare with its tiling")
    parser.add_argument("--tile", type=int, default=32, help="tile side of ComfyUI's tiling, in latent pixels")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.folder, options.python = options.comfyui, sys.executable
    if options.one:
        print(json.dumps(measure(options)))
    elif options.memory:
        memory_curve(options)
    elif options.paired:
        paired(options)
    elif options.video:
        video(options)
    elif options.comfyui:
        options.python = str(options.comfyui / ".venv" / "bin" / "python")
        compare(options, "decode", ("ComfyUI untiled", "ComfyUI tiled", "ComfyUI seamless"), 1)
    else:
        compare(options, "decode", METHODS, 2)
        compare(options, "encode", METHODS, 2)


if __name__ == "__main__":
    main()
