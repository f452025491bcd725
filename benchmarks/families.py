"""Compare the one-step families on Stable Diffusion 2.1, on one random base: time per picture and memory.

    PYTHONPATH=tests python benchmarks/families.py [--device cuda --dtype float16] [--sides 512 2048] [--repeats 3]
    PYTHONPATH=tests python benchmarks/families.py --small

The base has the sizes of Stable Diffusion 2.1, or with `--small` four levels of 32 to 64 channels, for CPUs. Each
measurement runs in its own process: medians over the repeats, after a picture of 512 px, without opening the files.
"Network" is the time in the U-Net (and the ControlNet); the rest is the VAE, the colours, for TAD-SeeSR the tagger,
for S3Diff merging the LoRA for the picture, and for InvSR its predictor. The last line is measured in one process, by
turns: how many evaluations of the network PiSA-SR takes at free strengths, with all that they add, from the shortest of
the repeats.
On a CPU, seconds are those that the process computes on one thread, so that other programs do not count.

`--authors NAME=FOLDER ...` also measures the authors' own models on the same files, from the enlarged picture to the
result before the colour match: checkouts of csslc/PiSA-SR (`"PiSA-SR, free"=FOLDER`), cswry/OSEDiff, XPixelGroup/HYPIR
and ArcticHare105/S3Diff. `--authors-packages FOLDER` has the versions of diffusers, transformers and peft that they
need (installed by `pip install --target`); other packages are this project's.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from authors import AUTHORS, STRENGTHS, opened
from torch import Tensor

UNET_FULL: dict[str, Any] = {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": (5, 10, 20, 20)}
UNET_SMALL: dict[str, Any] = {"block_out_channels": (32, 64, 64, 64), "attention_head_dim": (1, 2, 2, 2)}
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
VAE_FULL: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512)}
VAE_SMALL: dict[str, Any] = {"block_out_channels": (32, 32, 32, 32)}  # the authors' tiles have 32 groups
PROMPT_WIDTHS = {True: 1024, False: 32}  # by whether the base has its full size
BARE, EQUAL, FREE = "bare base", "PiSA-SR, equal", "PiSA-SR, free"
BY_AUTHORS = ", authors'"
BY_TURNS = "by turns"
WARM_UP = 512  # side of the result
LIMIT = 2.05  # evaluations of the network for PiSA-SR at free strengths


@dataclass(frozen=True)
class Case:
    """A family. `write`: the base's folder and a new one for its files -> the LoRA's file or folder."""

    write: Callable[[Path, Path], Path]
    strengths: dict[str, float] = field(default_factory=dict)
    tagger: bool = False


def write_seesr(base: Path, folder: Path) -> Path:
    import small_seesr

    return small_seesr.write_networks(base, folder, width=prompt_width(base) // 2)  # RAM's embedding, in both sizes


def prompt_width(base: Path) -> int:
    return json.loads((base / "unet" / "config.json").read_text())["cross_attention_dim"]


def predictor(base: Path) -> dict[str, Tensor]:
    """InvSR's, of its published size on a base of full size."""
    import small_invsr

    is_full = prompt_width(base) == PROMPT_WIDTHS[True]
    return small_invsr.predictor(*([small_invsr.PUBLISHED] if is_full else [])).state_dict()


def cases() -> dict[str, Case]:
    import small_peft

    pisa_sr, *others = small_peft.WRITERS
    return {
        EQUAL: Case(small_peft.WRITERS[pisa_sr]),
        FREE: Case(small_peft.WRITERS[pisa_sr], STRENGTHS),
        **{name: Case(small_peft.WRITERS[name]) for name in others},
        "InvSR": Case(small_peft.saved(predictor)),
        "TAD-SeeSR": Case(write_seesr, tagger=True),
    }


def write_base(folder: Path, full: bool) -> Path:
    """The full size in half precision, made on the GPU if there is one."""
    import small_unet
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    with torch.device("cuda" if full and torch.cuda.is_available() else "cpu"):
        sizes = UNET_FULL if full else UNET_SMALL
        unet = UNet2DConditionModel(cross_attention_dim=PROMPT_WIDTHS[full], use_linear_projection=True, **sizes)
        vae = AutoencoderKL(**VAE, **(VAE_FULL if full else VAE_SMALL))
    for network, name in ((unet, "unet"), (vae, "vae")):
        (network.half() if full else network).save_pretrained(folder / name)
    schedule: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    schedule |= {"clip_sample": False}
    DDPMScheduler(**schedule).save_pretrained(folder / "scheduler")
    small_unet.write_text_encoders(folder, (PROMPT_WIDTHS[full],))
    return folder


def write_files(root: Path, full: bool) -> None:
    write_base(root / "base", full)
    for name in cases():
        write_case(root, name, full)


def write_case(root: Path, name: str, full: bool) -> None:
    """A family's own files, next to the base."""
    import small_seesr
    from onestep_sr.sr_models.networks.ram import RAMConfig

    case = cases()[name]
    (root / name).mkdir()
    case.write(root / "base", root / name)
    if case.tagger:
        small_seesr.write_ram(root / "ram", RAMConfig() if full else small_seesr.RAM_CONFIG)


def picture(side: int) -> Tensor:
    """(1, 3, side, side) in [0, 1]."""
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))


# What is measured


def seconds_of(device: str) -> float:
    return time.process_time() if device == "cpu" else time.perf_counter()


@dataclass(frozen=True)
class Timed:
    """A denoiser whose network adds the seconds of each pass to `seconds`; its results come back to the CPU, so each
    pass has ended. A network that overflows ends the measurement, as it would run again in float32."""

    denoiser: Any
    device: str
    seconds: list[float]

    def run(self, work: Callable[[Any], Any], shape: tuple[int, ...], condition: Any = None) -> Any:
        def timed(network: Any) -> Any:
            def call(*inputs: Tensor) -> Tensor:
                begin = seconds_of(self.device)
                output = network(*inputs)
                self.seconds.append(seconds_of(self.device) - begin)
                return output

            return work(call)

        return self.denoiser.run(timed, shape, condition)

    def __getattr__(self, name: str) -> Any:
        if name == "in_float32":
            raise RuntimeError("The random network overflowed, so the measurement has no meaning.")
        return getattr(self.denoiser, name)


def ours(name: str, files: Path, device: str, dtype: torch.dtype) -> Callable[[int], float]:
    """Open the family's model. Returns a function from the result's side to the seconds in the network."""
    from onestep_sr.sr_models.core.model import Pass
    from onestep_sr.sr_models.core.upscale import upscale
    from onestep_sr.sr_models.diffusers_host.lora import open_lora
    from onestep_sr.sr_models.families import osediff
    from onestep_sr.sr_models.families.family import OneStepLora
    from onestep_sr.sr_models.families.registry import read_lora

    lora = OneStepLora(osediff.FAMILY, BARE, osediff.BASE, osediff.RECIPE.name)
    if name != BARE:
        case, [*found] = cases()[name], (files / name).glob("*.pkl")
        lora = read_lora(found[0] if found else files / name).at(case.strengths)
        lora = lora.with_tagger(files / "ram") if case.tagger else lora
    model = open_lora(files / "base", lora, dtype=dtype, device=torch.device(device)).model
    seconds: list[float] = []
    passes = [Pass(each.step, Timed(each.denoiser, device, seconds)) for each in model.all_passes()]
    model, by_picture = replace(model, passes=passes), model.by_picture
    if by_picture is not None:
        model = replace(model, by_picture=lambda picture: replace(by_picture(picture), passes=passes))

    def run(side: int) -> float:
        seconds.clear()
        upscale(model, picture(side // 4))
        return sum(seconds)

    return run


def authors(name: str, checkout: Path, files: Path, device: str, dtype: torch.dtype) -> Callable[[int], float]:
    model = opened(name, checkout, files / "base", files / name, device, dtype)

    def run(side: int) -> float:
        lr = picture(side // 4)
        model(lr, torch.nn.functional.interpolate(lr, (side, side)))
        return 0.0

    return run


def timed(run: Callable[[int], float], side: int, device: str) -> tuple[float, float]:
    """Seconds of a run in all, and in the network."""
    begin = seconds_of(device)
    network = run(side)
    return seconds_of(device) - begin, network


def by_turns(side: int, options: argparse.Namespace, place: tuple[Path, str, torch.dtype]) -> dict[str, float]:
    """The evaluations of the network at free strengths: 1 + (whole free - whole equal) / network equal."""
    runs, best = {name: ours(name, *place) for name in (EQUAL, FREE)}, {}
    for each in (WARM_UP, *[side] * options.repeats):
        for name, run in runs.items():
            found = timed(run, each, options.device)
            best[name, each] = tuple(map(min, found, best.get((name, each), found)))
    (equal, network), (free, _) = (best[name, side] for name in (EQUAL, FREE))
    return {"evaluations": 1 + (free - equal) / network}


def measure(name: str, side: int, options: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(1 if options.device == "cpu" else torch.get_num_threads())
    place = Path(options.files), options.device, getattr(torch, options.dtype)
    if name == BY_TURNS:
        return by_turns(side, options, place)
    family = name.removesuffix(BY_AUTHORS)
    run = ours(name, *place) if family == name else authors(family, options.authors[family], *place)
    whole, network = zip(
        *(timed(run, each, options.device) for each in (WARM_UP, *[side] * options.repeats)), strict=True
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if options.device != "cpu":
        peak = torch.cuda.max_memory_allocated() / 2**20
    return {"seconds": statistics.median(whole[1:]), "network": statistics.median(network[1:]), "peak_mb": peak}


# The table


def in_own_process(name: str, side: int, files: Path, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", name, str(side), "--files", files, "--repeats", options.repeats]
    command += ["--device", options.device, "--dtype", options.dtype]
    places = os.environ.get("PYTHONPATH", "")
    if name.endswith(BY_AUTHORS):
        command += ["--authors", *(f"{family}={folder}" for family, folder in options.authors.items())]
        places = os.pathsep.join([*filter(None, [options.authors_packages]), places])
    environment = os.environ | {"PYTHONPATH": places}
    command = [str(part) for part in command]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(result.stdout.splitlines()[-1])


def print_table(files: Path, options: argparse.Namespace) -> None:
    columns = [f"{side} px: {what}" for side in options.sides for what in ("seconds", "network", "peak")]
    print(f"| {' | '.join(['', *columns])} |\n|{' --- |' * (len(columns) + 1)}", flush=True)
    network: dict[tuple[str, int], float] = {}
    for name in [BARE, *cases(), *(f"{family}{BY_AUTHORS}" for family in options.authors)]:
        cells = [name]
        for side in options.sides:
            found = in_own_process(name, side, files, options)
            network[name, side] = found["network"]
            inside = "" if name.endswith(BY_AUTHORS) else f"{found['network']:.2f}"
            cells += [f"{found['seconds']:.2f}", inside, f"{found['peak_mb']:.0f} MB"]
        print(f"| {' | '.join(cells)} |", flush=True)
    for side in options.sides:
        merged = network[EQUAL, side] / network[BARE, side]
        free = in_own_process(BY_TURNS, side, files, options)["evaluations"]
        print(f"{side} px: network with PiSA-SR merged / bare base {merged:.2f}")
        print(f"{side} px: PiSA-SR at free strengths takes {free:.2f} evaluations of the network (limit {LIMIT})")


def checkout(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if name not in AUTHORS or not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not NAME=FOLDER with one of {', '.join(AUTHORS)}")
    return name, Path(folder).resolve()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--authors", type=checkout, nargs="+", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--authors-packages", metavar="FOLDER")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--files", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.authors = dict(options.authors)
    if options.one:
        name, side = options.one
        print(json.dumps(measure(name, int(side), options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), not options.small)
        print_table(Path(folder), options)


if __name__ == "__main__":
    main()
