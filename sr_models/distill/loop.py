"""The training loop: one for every objective, one process or several."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import ProjectConfiguration
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from ..checkpoints import own
from ..errors import UserError
from ..metrics import high_frequency_power, psnr
from ..networks.pixel_shuffle import PixelShuffleCodec
from .data import CropPairs, list_images
from .degradation import Degradation
from .objectives import Batch, StudentObjective, TeacherObjective

Objective = TeacherObjective | StudentObjective
VALIDATION_PICTURES = 6


@dataclass(frozen=True)
class TrainConfig:
    """How long, how fast and where. `batch` counts crops per process and backward pass."""

    data: Path
    output: Path
    steps: int = 30_000
    batch: int = 16
    accumulate: int = 1
    crop: int = 256
    learning_rate: float = 5e-5
    warmup: int = 100
    ema: float = 0.999
    clip: float = 1.0
    precision: str = "no"
    seed: int = 0
    workers: int = 1
    save_every: int = 500
    log_every: int = 20
    validation: Path | None = None
    degradation: Degradation = field(default_factory=Degradation)


def train(config: TrainConfig, objective: Objective, codec: PixelShuffleCodec, description: own.Description) -> Path:
    """Train, or go on from `config.output/checkpoint` if it is there; returns the final model's path.

    A run that is stopped and started again gives the same losses as one that is not: the pairs and the
    noise are functions of (seed, step), and the checkpoint holds the rest. Raises UserError for a folder
    without pictures or a checkpoint of another run's settings.
    """
    accelerator = Accelerator(
        mixed_precision=config.precision,
        gradient_accumulation_steps=config.accumulate,
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=str(config.output), logging_dir=str(config.output)),
        dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
    )
    config.output.mkdir(parents=True, exist_ok=True)
    accelerator.init_trackers("log")
    trainable = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.learning_rate, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, config))
    average = AveragedModel(objective.network, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
    objective.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    prepared, optimizer = accelerator.prepare(objective, optimizer)
    average.to(accelerator.device)
    accelerator.register_for_checkpointing(average, scheduler)

    settings = run_settings(config, objective, description)
    step = resume(accelerator, config.output / "checkpoint", settings)
    batches = pair_batches(config, accelerator, step)
    with progress_bar(accelerator.is_main_process) as progress:
        task = progress.add_task("training", total=config.steps, completed=step, note="")
        while step < config.steps:
            losses, norm = training_step(accelerator, prepared, optimizer, batches, codec, config, step)
            scheduler.step()
            average.update_parameters(accelerator.unwrap_model(prepared).network)
            step += 1
            progress.update(task, completed=step)
            if step % config.log_every == 0 or step == config.steps:
                values = {name: float(value) for name, value in losses.items()}
                accelerator.log({**values, "gradient_norm": norm, "learning_rate": scheduler.get_last_lr()[0]}, step)
                progress.update(task, note=" ".join(f"{k} {v:.4g}" for k, v in values.items()))
            if step % config.save_every == 0 or step == config.steps:
                validate(accelerator, config, objective, average.module, codec, step)
                save_checkpoint(accelerator, config.output, settings, step)
                if accelerator.is_main_process:
                    own.save(config.output / "model.safetensors", average.module, description)
    accelerator.end_training()
    return config.output / "model.safetensors"


def training_step(accelerator, prepared, optimizer, batches: Iterator, codec, config, step):
    """One update from `accumulate` batches: their mean losses and the gradient's norm before clipping."""
    total: dict[str, Tensor] = {}
    norm: Tensor | float | None = 0.0
    for part in range(config.accumulate):
        pairs = next(batches)
        batch = Batch.from_pairs(pairs["hr"].to(accelerator.device), pairs["lr"].to(accelerator.device), codec)
        key = (config.seed, step, part, accelerator.process_index)
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
        with accelerator.accumulate(prepared):
            with accelerator.autocast():
                losses = prepared(batch, generator)
            accelerator.backward(losses["loss"])
            if not torch.isfinite(losses["loss"]):
                raise UserError(f"The loss of step {step} is not a finite number: lower the learning rate or use bf16.")
            norm = (
                accelerator.clip_grad_norm_(prepared.parameters(), config.clip) if accelerator.sync_gradients else 0.0
            )
            optimizer.step()
            optimizer.zero_grad()
        for name, value in losses.items():
            total[name] = total.get(name, 0) + value.detach() / config.accumulate
    return total, float(norm)


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """A linear warm-up, then half a cosine down to a twentieth."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + float(np.cos(np.pi * min(1.0, done))))


def pair_batches(config: TrainConfig, accelerator: Accelerator, step: int) -> Iterator[dict[str, Tensor]]:
    """Batches from the given step on; every process draws its own numbers."""
    per_step = config.batch * config.accumulate
    length = (config.steps - step) * per_step
    start = accelerator.process_index * config.steps * per_step + step * per_step
    pairs = CropPairs(config.data, config.crop, config.degradation, config.seed, start, length)
    return iter(DataLoader(pairs, config.batch, num_workers=config.workers, worker_init_fn=_one_thread))


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def run_settings(config: TrainConfig, objective: Objective, description: own.Description) -> dict:
    """What must not change between two parts of one run."""
    fixed = ("steps", "batch", "accumulate", "crop", "learning_rate", "warmup", "ema", "clip", "seed", "degradation")
    settings = {name: value for name, value in asdict(config).items() if name in fixed}
    settings |= {"objective": objective.settings(), "description": asdict(description)}
    return json.loads(json.dumps(settings))


def resume(accelerator: Accelerator, folder: Path, settings: dict) -> int:
    """Load the checkpoint, if there is one; returns the step to go on from. Raises UserError for another run's."""
    kept = folder.with_name("checkpoint.old")
    if not folder.exists() and kept.exists():  # a crash came between the two renames of `save_checkpoint`
        kept.rename(folder)
    if not (folder / "run.json").exists():
        return 0
    saved = json.loads((folder / "run.json").read_text())
    if saved["settings"] != settings:
        raise UserError(f"{folder} was made with other settings: use the same ones to go on, or another output folder.")
    accelerator.load_state(str(folder))
    return saved["step"]


def save_checkpoint(accelerator: Accelerator, output: Path, settings: dict, step: int) -> None:
    """Write beside the old checkpoint, then put it in its place: one of the two is always whole."""
    folder, fresh, old = (output / name for name in ("checkpoint", "checkpoint.new", "checkpoint.old"))
    accelerator.save_state(str(fresh))
    if accelerator.is_main_process:
        (fresh / "run.json").write_text(json.dumps({"step": step, "settings": settings}))
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


@torch.no_grad()
def validate(accelerator, config: TrainConfig, objective: Objective, network: nn.Module, codec, step: int) -> None:
    """PSNR and fine detail on the first validation pictures, and a strip LR | result | HR."""
    if config.validation is None or not accelerator.is_main_process:
        return
    scores, detail, strips = [], [], []
    for file in list_images(config.validation)[:VALIDATION_PICTURES]:
        hr_image = Image.open(file).convert("RGB").crop((0, 0, config.crop * 2, config.crop * 2))
        lr_image = hr_image.resize([side // codec.factor for side in hr_image.size], Image.Resampling.BICUBIC)
        hr, lr = (
            torch.from_numpy(np.array(i)).permute(2, 0, 1)[None].to(accelerator.device) for i in (hr_image, lr_image)
        )
        batch = Batch.from_pairs(hr, lr, codec)
        noise = torch.randn(batch.y.shape, generator=torch.Generator().manual_seed(config.seed)).to(accelerator.device)
        with accelerator.autocast():
            result = codec.decode(objective.sample(network, batch, noise).float()).clamp(0, 1)
        truth = hr.float() / 255
        scores.append(psnr(result[0], truth[0]))
        detail.append(high_frequency_power(result[0]) / high_frequency_power(truth[0]))
        strips.append(torch.cat([codec.decode(batch.y).clamp(0, 1), result, truth], dim=-1)[0])
    accelerator.log({"psnr": float(np.mean(scores)), "detail": float(np.median(detail))}, step)
    writer = accelerator.get_tracker("tensorboard", unwrap=True)
    writer.add_image("samples", torch.cat(strips[:3], dim=1), step)


def progress_bar(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), disable=not shown)
