"""A small Stable Diffusion 3, prepared data for it, and short runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import small_sd3
import torch
from null_device import NULL, NullDevice
from onestep_sr.sr_models.training import loop
from onestep_sr.sr_models.training.draws import Draws
from onestep_sr.sr_models.training.sd import prepare, shards
from onestep_sr.sr_models.training.sd import runs as sd_runs
from onestep_sr.sr_models.training.sd.bases import open_base
from onestep_sr.sr_models.training.sd.runs import PromptSource
from onestep_sr.sr_models.training.sd.shared_base import Ranks, SharedBase
from onestep_sr.sr_models.training.sd.tsd_objective import TSDConfig, TSDObjective
from PIL import Image
from places import PHOTOS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

NARROW = (32, 32, 64, 64)
CROP = 64
CONFIG = prepare.PrepareConfig(crop=CROP, crops=3, shard=4)
RANKS = Ranks(4, 4, 4)


def write_base(root: Path) -> small_sd3.SmallSD3:
    """With a null prompt in the folder `null`."""
    files = small_sd3.write(root, NARROW)
    null = files.root / "null"
    null.mkdir()
    generator = torch.Generator().manual_seed(8)
    torch.save(0.5 * torch.randn(1, 333, 4096, generator=generator), null / "prompt_embeds.pt")
    torch.save(torch.randn(1, 2048, generator=generator), null / "pool_embeds.pt")
    return files


def prepared(
    small: small_sd3.SmallSD3, output: Path, config=CONFIG, folder: Path = PHOTOS, workers=0, **source
) -> list:
    source = {"embeddings": small.embeddings, "null_embeddings": small.root / "null", "captions": False} | source
    where = {"device": torch.device("cpu"), "dtype": torch.float32, "workers": workers, "report": lambda crops: None}
    return sd_runs.prepare_data(folder, output, small.folder, config, PromptSource(**source), **where)


def paired(folder: Path) -> dict[str, Path]:
    """HR pictures with LR ones and a teacher's results under the same names, all of which show the same."""
    generator = np.random.default_rng(0)
    folders = {name: folder / name for name in ("hr", "lr", "targets")}
    for path in folders.values():
        path.mkdir()
    for index in range(3):
        small_picture = Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        large = small_picture.resize((160, 120), Image.Resampling.NEAREST)
        small_picture.save(folders["lr"] / f"{index}.png")
        large.save(folders["hr"] / f"{index}.png")
        large.point(lambda value: 255 - value).save(folders["targets"] / f"{index}.webp", lossless=True)
    (folders["targets"] / "2.webp").unlink()
    return folders


def shared(small, **options) -> SharedBase:
    torch.manual_seed(0)
    return SharedBase(open_base(small.folder, torch.float32), RANKS, **options)


def shaken(base: SharedBase, seed: int = 0) -> SharedBase:
    """Adapters that do something."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in base.named_parameters():
        if ".lora_B." in name:
            weight.data = 0.05 * torch.randn(weight.shape, generator=generator) / weight.shape[1] ** 0.5
    return base


def objective(base: SharedBase, data: Path, config: TSDConfig | None = None) -> TSDObjective:
    default, null = shards.read_prompts(data)
    return TSDObjective(base, default, null, config or TSDConfig())


def batch(data: Path, numbers=(0, 1)) -> dict[str, torch.Tensor]:
    samples = [shards.ShardSamples(data, 0)[number] for number in numbers]
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in module.named_parameters() if weight.grad is not None}


def mixed_devices(made: torch.nn.Module, pictures: dict[str, torch.Tensor]) -> list[str]:
    """Operations of a training step on tensors of two devices; the objective loses its weights."""
    made.to(NULL)
    on_device = {name: tensor.to(NULL) for name, tensor in pictures.items()}
    with NullDevice() as device:
        made(on_device, Draws(0, range(len(pictures["hr"])), NULL), 0)["loss"].backward()
    return device.mixed


def run_config(output: Path, **changes) -> loop.TrainConfig:
    settings: dict = {"steps": 4, "batch": 2, "warmup": 1, "workers": 0, "save_every": 2, "log_every": 1, "ema": 0.5}
    return loop.TrainConfig(output, **(settings | changes))


def scalars(folder: Path, name: str) -> dict[int, float]:
    return {event.step: event.value for event in EventAccumulator(str(folder / "log")).Reload().Scalars(name)}


def launched(*words: object, processes: int = 0, kind: str = "--multi_gpu") -> subprocess.CompletedProcess:
    """A Python command, in several processes if `processes` is not 0."""
    start = [sys.executable]
    if processes:
        start += ["-m", "accelerate.commands.launch", kind, "--num_processes", str(processes), "--num_machines", "1"]
        start += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [str(word) for word in (*start, *words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def cli(*words: object, launch: int = 0, **options: str) -> subprocess.CompletedProcess:
    return launched("-m", "onestep_sr", *words, processes=launch, **options)
