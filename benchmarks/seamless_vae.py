"""Compare the seamless VAE with untiled decoding and ComfyUI's stock tiling: time, peak memory, difference.

    python benchmarks/seamless_vae.py [--side 640] [--dtype float32 | bfloat16] [--budget 2048]
    python benchmarks/seamless_vae.py --memory 512 1024 2048 --budgets 64 256 --width 16
    python benchmarks/seamless_vae.py --precision 512 --width 32
    python benchmarks/seamless_vae.py --comfyui ~/comfy/ComfyUI [--tile 32] [--kind wan]
    python benchmarks/seamless_vae.py --paired 256 512 1024 [--dtype bfloat16]
    python benchmarks/seamless_vae.py --video 17 49 [--dtype bfloat16]

A VAE with Stable Diffusion 3's architecture (83.8 million parameters, 16 channels) and random weights on the CPU. Each
measurement runs in its own process: the median over the repeats after a small warm-up, and the peak of resident memory
above the memory before the run (Linux). Differences are from the untiled result in the same precision. `--paired SIDES`
takes turns with untiled in one process and counts its CPU seconds, which other work on the machine changes less.
`--video FRAMES` runs a VAE for videos, Wan 2.1's or `--kind`, an eighth as wide, on 480 x 832 px. `--memory SIDES` and
`--precision SIDE` run all `--kinds`: the peak of untiled and of seamless at each budget, and bfloat16 beside float32,
without a time.
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
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
FULL_WIDTH = 128  # Wan 2.1: three quarters of it, Wan 2.2: five


class Kind(NamedTuple):
    """Channels of the latent, pixels per pixel of it, and frames per frame of it, 0 for pictures."""

    channels: int
    factor: int = 8
    frames: int = 0


KINDS = {"sd3": Kind(16), "flux2": Kind(32), "wan": Kind(16, 8, 4), "wan22": Kind(48, 16, 4)}
KINDS |= {"hunyuan-image": Kind(64, 32), "hunyuan-video": Kind(16, 8, 4), "hunyuan-video-15": Kind(32, 16, 4)}
KINDS |= {"ltx2": Kind(128, 32, 8)}
CLAMPED = ("wan", "wan22")  # by diffusers
METHODS = ("untiled", "seamless")
VIDEO_SIZE, VIDEO_WIDTH = (480, 832), 16


def small_changes(autoencoder: Any) -> None:
    """Change the norms of a new network, whose weights of 1 and biases of 0 would hide errors."""
    generator = torch.Generator().manual_seed(1)
    for parameter in autoencoder.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def diffusers_vae(dtype: torch.dtype, kind: str = "sd3", width: int = FULL_WIDTH) -> Any:
    """A new autoencoder with this many channels at the picture's resolution."""
    from diffusers.utils import logging

    logging.set_verbosity_error()
    torch.manual_seed(0)
    autoencoder = video_vae(kind, width) if KINDS[kind].frames else picture_vae(kind, width)
    small_changes(autoencoder)
    return autoencoder.eval().requires_grad_(False).to(dtype)


def picture_vae(kind: str, width: int) -> Any:
    from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLHunyuanImage

    if kind == "hunyuan-image":
        widths = (width, 2 * width, 4 * width, 4 * width, 8 * width, 8 * width)
        return AutoencoderKLHunyuanImage(3, 3, 64, widths, 2, 32, 384)
    settings: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (width, 2 * width, 4 * width, 4 * width),
        "norm_num_groups": min(32, width // 2),
        "latent_channels": KINDS[kind].channels,
        "layers_per_block": 2,
    }
    if kind == "flux2":
        return AutoencoderKLFlux2(**settings)
    return AutoencoderKL(use_quant_conv=False, use_post_quant_conv=False, **settings)


def video_vae(kind: str, width: int) -> Any:
    from diffusers import (
        AutoencoderKLHunyuanVideo,
        AutoencoderKLHunyuanVideo15,
        AutoencoderKLLTX2Video,
        AutoencoderKLWan,
    )

    widths: Any = (width, 2 * width, 4 * width, 8 * width)
    if kind == "wan22":
        patches: dict[str, Any] = {"patch_size": 2, "in_channels": 12, "out_channels": 12, "is_residual": True}
        return AutoencoderKLWan(width * 5 // 4, 2 * width, z_dim=48, scale_factor_spatial=16, **patches)
    if kind == "hunyuan-video":
        groups = min(32, width // 2)
        widths = (*widths[:3], 4 * width)
        autoencoder = AutoencoderKLHunyuanVideo(block_out_channels=widths, norm_num_groups=groups)
        autoencoder.use_framewise_encoding = autoencoder.use_framewise_decoding = False
        return autoencoder
    if kind == "hunyuan-video-15":
        widths = (*widths, 8 * width)
        return AutoencoderKLHunyuanVideo15(block_out_channels=widths)
    if kind == "ltx2":
        twice: Any = tuple(2 * each for each in widths)
        return AutoencoderKLLTX2Video(
            block_out_channels=twice, decoder_block_out_channels=twice[:3], decoder_causal=False
        )
    return AutoencoderKLWan(base_dim=width * 3 // 4)


def comfyui_vae(dtype: torch.dtype, kind: str) -> Any:
    """The same weights in ComfyUI's VAE object, for Wan new ones; runs in ComfyUI's interpreter and folder."""
    sys.argv = [sys.argv[0], "--cpu"]
    sys.path.insert(0, ".")
    import comfy.options  # noqa: TID251

    comfy.options.enable_args_parsing()
    import comfy.sd  # noqa: TID251

    weights = comfyui_wan_weights() if kind == "wan" else torch.load(os.environ["VAE_WEIGHTS"])
    return comfy.sd.VAE(sd=weights, dtype=dtype)


def comfyui_wan_weights() -> dict[str, Tensor]:
    from comfy.ldm.wan.vae import WanVAE  # noqa: TID251

    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = WanVAE(dim=FULL_WIDTH * 3 // 4, z_dim=KINDS["wan"].channels).state_dict()
    weights = {name: torch.randn(weight.shape, generator=generator) for name, weight in shapes.items()}
    for name, weight in weights.items():
        is_kernel = weight[0].numel() > 1
        weight.mul_(weight[0].numel() ** -0.5 if is_kernel else 0.2).add_(1.0 if "gamma" in name else 0.0)
    return weights


def work(method: str, direction: str, options: argparse.Namespace) -> Callable[[Tensor], Tensor]:
    dtype, budget = getattr(torch, options.dtype), options.budget * 2**20
    if method.startswith("ComfyUI"):
        run = comfyui_encoding if direction == "encode" else comfyui_decoding
        return run(method, comfyui_vae(dtype, options.kind), budget)
    autoencoder = diffusers_vae(dtype, options.kind, options.width)
    if method == "untiled" and direction == "decode":
        return lambda latent: autoencoder.decode(latent.to(dtype)).sample.float()
    if method == "untiled":
        return lambda image: autoencoder.encode(image.to(dtype)).latent_dist.mode().float()
    from onestep_sr.sr_models.codecs import seamless

    function = getattr(seamless, direction)
    return lambda canvas: function(autoencoder, canvas, budget=budget)


def comfyui_decoding(method: str, vae: Any, budget: int) -> Callable[[Tensor], Tensor]:
    """Stock methods clamp to [0, 1], so all results use that range."""
    tile = int(os.environ["VAE_TILE"])
    if method == "ComfyUI untiled":
        return lambda latent: vae.decode(latent).movedim(-1, 1)
    if method == "ComfyUI tiled":
        return lambda latent: vae.decode_tiled(latent, tile_x=tile, tile_y=tile, overlap=tile // 4).movedim(-1, 1)
    from onestep_sr.sr_models.codecs import seamless

    network = vae.first_stage_model
    return lambda latent: (seamless.decode(network, latent, budget=budget) / 2 + 0.5).clamp(0, 1)


def comfyui_encoding(method: str, vae: Any, budget: int) -> Callable[[Tensor], Tensor]:
    """Stock methods take pictures (1, H, W, C) in [0, 1]."""
    tile = int(os.environ["VAE_TILE"]) * KINDS["sd3"].factor
    sizes = {"tile_x": tile, "tile_y": tile, "overlap": tile // 4}
    if method == "ComfyUI untiled":
        return lambda image: vae.encode(stock_layout(image))
    if method == "ComfyUI tiled":
        return lambda image: vae.encode_tiled(stock_layout(image), **sizes)
    from onestep_sr.sr_models.codecs import seamless

    return lambda image: seamless.encode(vae.first_stage_model, image, budget=budget)


def stock_layout(image: Tensor) -> Tensor:
    """A picture, or the only frame of a video."""
    return (image.reshape(1, 3, *image.shape[-2:]) / 2 + 0.5).movedim(1, -1)


def video_of(direction: str, frames: int, kind: str) -> Tensor:
    """Values in the middle, because diffusers clamps what it decodes."""
    generator, (height, width) = torch.Generator().manual_seed(2), VIDEO_SIZE
    if direction == "encode":
        return torch.rand(1, 3, frames, height, width, generator=generator) * 2 - 1
    channels, factor, time = KINDS[kind]
    shape = (1, channels, 1 + (frames - 1) // time, height // factor, width // factor)
    return torch.randn(shape, generator=generator) / 4


def canvas_of(direction: str, side: int, kind: str = "sd3") -> Tensor:
    generator = torch.Generator().manual_seed(2)
    if direction == "encode":
        canvas = torch.rand(1, 3, side, side, generator=generator) * 2 - 1
    else:
        small = side // KINDS[kind].factor
        canvas = torch.randn(1, KINDS[kind].channels, small, small, generator=generator)
    return canvas.unsqueeze(2) / 4 if KINDS[kind].frames else canvas  # a video of one frame, in the middle as above


def resident(line: str) -> float:
    """A value of the process's status in MB: VmRSS (current) or VmHWM (peak)."""
    status = Path("/proc/self/status").read_text()
    return next(int(text.split()[1]) / 1024 for text in status.splitlines() if text.startswith(line))


@torch.inference_mode()
def measure(options: argparse.Namespace) -> dict[str, float]:
    method, direction, side, target = options.one
    torch.set_num_threads(options.threads)
    convert, seconds = work(method, direction, options), []
    kind, frames = options.kind, options.frames
    canvas = video_of(direction, frames, kind) if frames else canvas_of(direction, int(side), kind)
    convert(canvas_of(direction, 64, kind))
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
    for name in ("threads", "repeats", "budget", "dtype", "kind", "width", "frames"):
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
    print(f"CPU seconds, {options.dtype}, {options.threads} threads, budget {options.budget} MB")
    for direction in ("decode", "encode"):
        runs = [work(method, direction, options) for method in METHODS]
        for side in options.paired:
            canvas = canvas_of(direction, side, options.kind)
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
                result = result.clamp(-1, 1) if direction == "decode" and options.kind in CLAMPED else result
                print(f"  {direction} {frames} frames: {one['seconds']:.1f} s, {one['peak_mb']:.0f} MB;", end=" ")
                print(f"seamless {own['seconds']:.1f} s, {own['peak_mb']:.0f} MB,", difference(result, untiled, 2))


def difference(result: Tensor, untiled: Tensor, peak: float) -> str:
    return f"max difference {(result - untiled).abs().max():.1e}, PSNR {decibels(result, untiled, peak):.1f} dB"


def decibels(result: Tensor, untiled: Tensor, peak: float) -> float:
    return float(20 * torch.log10(peak / (result - untiled).square().mean().sqrt().clamp(min=1e-12)))


def compare(options: argparse.Namespace, direction: str, methods: tuple[str, ...], peak: float) -> None:
    """The first method is the reference."""
    with tempfile.TemporaryDirectory() as name:
        if options.comfyui:
            save_original_names(Path(name) / "vae.pt")
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


def save_original_names(path: Path) -> None:
    """Save the weights with diffusers' names, which ComfyUI also reads."""
    torch.save(diffusers_vae(torch.float32).state_dict(), path)


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
            canvas = canvas_of(direction, options.precision, options.kind)
            results = []
            for options.dtype, method in (("float32", "untiled"), ("bfloat16", "untiled"), ("bfloat16", "seamless")):
                result = work(method, direction, options)(canvas.bfloat16().float())
                results.append(result.clamp(-1, 1) if options.kind in CLAMPED and direction == "decode" else result)
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
    parser.add_argument("--kinds", **kinds, help="of --memory and --precision")
    parser.add_argument("--width", type=int, default=FULL_WIDTH, help="channels at the picture's resolution")
    parser.add_argument("--frames", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--memory", type=int, nargs="+", metavar="SIDE", help="only measure peak memory at these sides")
    parser.add_argument("--budgets", type=int, nargs="+", default=[64, 256], help="of --memory, in MB")
    parser.add_argument("--precision", type=int, metavar="SIDE", help="only compare bfloat16 with float32 at this side")
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
    elif options.precision:
        precision(options)
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
