"""The training loop, for every objective and for one or several processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, parse_flag_from_env
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from ..core.devices import default_dtype
from ..errors import UserError
from ..files.whole import write_whole
from .checkpoint import Best, Learned, remove_leftovers, resume, save_checkpoint
from .draws import Draws
from .objective import Objective
from .validation import HIGHER_IS_BETTER, NETWORK_METRICS, Metric, better, find_metrics, validate

PRECISIONS = ("no", "bf16", "fp16")
INITIAL_RATE = "initial_lr"
WRAPPERS = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}  # accelerate launch sets them


def fastest_precision() -> str:
    """The fastest of PRECISIONS on the training device: half precision only if the hardware supports it, because
    emulation is many times slower than float32."""
    if torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    return "bf16" if default_dtype(torch.device("cpu")) == torch.bfloat16 else "no"


class Samples(Protocol):
    """An endless sequence of samples: the same index always gives the same sample."""

    def __getitem__(self, number: int) -> dict[str, Tensor]: ...

    def settings(self) -> dict[str, Any]:
        """Settings that must match to resume a run."""
        ...


@dataclass(frozen=True)
class TrainConfig:
    """How long, how fast and where. `batch` counts samples per process and backward pass.

    `best` is the validation score that selects the best result: psnr, ssim, niqe, lpips, dists or musiq. `lpips` and
    `musiq` are passed to `validation.find_metrics`. `run_file` is the text of the run.toml that reproduces the run.
    """

    output: Path
    steps: int = 30_000
    batch: int = 16
    accumulate: int = 1
    warmup: int = 100
    ema: float = 0.999
    clip: float = 1.0
    precision: str = "no"
    seed: int = 0
    workers: int = 1
    save_every: int = 500
    log_every: int = 20
    validation: Path | None = None
    best: str = "psnr"
    lpips: Path | None = None
    musiq: Path | None = None
    run_file: str = ""


def train(config: TrainConfig, objective: Objective, samples: Samples) -> Path:
    """Train, or resume from the checkpoint in `config.output` if there is one; returns the final result's path.

    Sample i of `samples` and its random numbers depend only on (seed, i). So a run that is stopped and resumed gives
    the same weights as one that is not, and several processes the same as one with a larger batch. The last result
    is in `config.output`, the best one in its folder `best`.
    Raises UserError for a checkpoint with other settings, and for a loss that is not finite.
    """
    accelerator = _accelerator(config)
    torch.backends.cudnn.benchmark = True  # a run's crops have one size
    needs_metrics = config.validation is not None or config.best in NETWORK_METRICS
    metrics = find_metrics(config.lpips, config.musiq) if needs_metrics else {}
    if config.best in NETWORK_METRICS and config.best not in metrics:
        raise UserError(
            f"The best result cannot be selected by {config.best.upper()} because its weights were not found: pass "
            f"them with --{'lpips' if config.best == 'dists' else config.best}."
        )
    config.output.mkdir(parents=True, exist_ok=True)
    accelerator.init_trackers("log")
    groups: list[Any] = [{**group, INITIAL_RATE: group["lr"]} for group in objective.groups()]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    learned = nn.ParameterList(objective.averaged())
    average = AveragedModel(learned, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
    exclude_frozen_from_ddp(objective)
    prepared, optimizer = accelerator.prepare(objective, optimizer)
    average.to(accelerator.device)
    state = Learned(accelerator.unwrap_model(prepared), optimizer, average, accelerator.scaler)
    settings = run_settings(config, objective, samples, accelerator.num_processes)
    step, best = resume(config.output, state, settings)
    if accelerator.is_main_process:
        remove_leftovers(config.output)
        write_whole(config.output / "run.toml", lambda path: path.write_text(config.run_file, encoding="utf-8"))
    batches = sample_batches(config, samples, accelerator, step)
    with progress_bar(accelerator.is_main_process) as progress:
        task = progress.add_task("training", total=config.steps, completed=step, note="")
        while step < config.steps:
            rates = set_learning_rates(optimizer, learning_rate_factor(step, config))
            values = training_step(accelerator, prepared, optimizer, batches, config, step)
            average.update_parameters(learned)
            step += 1
            progress.update(task, completed=step)
            if step % config.log_every == 0 or step == config.steps:
                means = {name: _mean(accelerator, value) for name, value in values.items()}
                accelerator.log(means | rates, step)
                progress.update(task, note=" ".join(f"{k} {v:.4g}" for k, v in means.items() if "/" not in k))
            if step % config.save_every == 0 or step == config.steps:
                with averaged(learned, average):
                    best = keep_results(accelerator, config, objective, metrics, step, best)
                if accelerator.is_main_process:
                    save_checkpoint(config.output, state, settings, step, best)
                accelerator.wait_for_everyone()
    accelerator.end_training()
    with averaged(learned, average):
        return objective.save(config.output) if accelerator.is_main_process else config.output


def exclude_frozen_from_ddp(objective: Any) -> None:
    """No comparing and broadcasting of frozen weights at the start: all processes read the same files."""
    frozen = [name for name, weight in objective.named_parameters() if not weight.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(objective, frozen)


def _mean(accelerator: Accelerator, value: Tensor) -> float:
    """The mean over all processes."""
    reduced: Any = accelerator.reduce(value, "mean")
    return float(reduced)


def _accelerator(config: TrainConfig) -> Accelerator:
    if config.precision not in PRECISIONS:
        raise UserError(f"Precision {config.precision!r} is unknown: choose one of {', '.join(PRECISIONS)}.")
    if config.best not in HIGHER_IS_BETTER:
        raise UserError(f"Metric {config.best!r} is unknown: choose one of {', '.join(HIGHER_IS_BETTER)}.")
    for flag, name in WRAPPERS.items():
        if parse_flag_from_env(flag):
            raise UserError(
                f"accelerate is configured for {name}, which would shard the trainable weights: choose plain "
                "multi-process training in accelerate config."
            )
    # No broadcast of buffers at every step: they are frozen tables, or equal in all processes anyway.
    return Accelerator(
        mixed_precision=config.precision,
        gradient_accumulation_steps=config.accumulate,
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=str(config.output), logging_dir=str(config.output)),
        dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def training_step(
    accelerator: Accelerator, prepared: Any, optimizer: Any, batches: Iterator, config: TrainConfig, step: int
) -> dict[str, Tensor]:
    """One update from `accumulate` batches. Returns mean losses, and each group's gradient norm before clipping."""
    values: dict[str, Tensor] = {}
    for _ in range(config.accumulate):
        batch = {name: tensor.to(accelerator.device) for name, tensor in next(batches).items()}
        draws = Draws(config.seed, batch.pop("number").tolist(), accelerator.device)
        with accelerator.accumulate(prepared):
            with accelerator.autocast():
                losses = prepared(batch, draws, step)
            accelerator.backward(losses["loss"])
            if not torch.isfinite(losses["loss"]):
                raise UserError(f"The loss of step {step} is not finite: use a lower learning rate or bf16.")
            if accelerator.sync_gradients:
                accelerator.unscale_gradients()
                for group in optimizer.param_groups:
                    norm = nn.utils.clip_grad_norm_(group["params"], config.clip)
                    values[f"gradient_norm/{group['name']}"] = norm
            optimizer.step()
            optimizer.zero_grad()
        for name, value in losses.items():
            values[name] = values.get(name, torch.zeros_like(value)) + value.detach() / config.accumulate
    return values


def keep_results(
    accelerator: Accelerator,
    config: TrainConfig,
    objective: Objective,
    metrics: dict[str, Metric],
    step: int,
    best: Best | None,
) -> Best | None:
    """Validate and write the result, also to `best` if it is the best one so far.

    Every process validates, because the base may be sharded; the main process writes.
    """
    if accelerator.is_main_process:
        objective.save(config.output)
    if config.validation is None:
        return best

    def restore(lr: Tensor) -> Tensor:
        with accelerator.autocast():
            return objective.restore(lr.to(accelerator.device), config.seed)

    scores, strip = validate(restore, config.validation, metrics)
    if not accelerator.is_main_process:
        return best
    accelerator.log({f"validation/{name}": score for name, score in scores.items()}, step)
    writer: Any = accelerator.get_tracker("tensorboard", unwrap=True)
    writer.add_image("samples", strip, step)
    if best is not None and not better(config.best, scores[config.best], best.score):
        return best
    objective.save(config.output / "best")
    return Best(step, scores[config.best])


@contextmanager
def averaged(learned: nn.ParameterList, average: AveragedModel) -> Iterator[None]:
    """Temporarily replace the learned weights by the averaged ones."""
    kept = [weight.detach().clone() for weight in learned]
    _copy(list(average.module.parameters()), learned)
    try:
        yield
    finally:
        _copy(kept, learned)


@torch.no_grad()
def _copy(source: list, target: nn.ParameterList) -> None:
    for weight, value in zip(target, source, strict=True):
        weight.copy_(value)


def set_learning_rates(optimizer: Any, factor: float) -> dict[str, float]:
    """Set each group's learning rate to `factor` times its initial one. Returns the rates, to be logged."""
    for group in optimizer.param_groups:
        group["lr"] = group[INITIAL_RATE] * factor
    return {f"learning_rate/{group['name']}": group["lr"] for group in optimizer.param_groups}


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to 0.05."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + float(np.cos(np.pi * min(1.0, done))))


def sample_batches(
    config: TrainConfig, samples: Samples, accelerator: Accelerator, step: int
) -> Iterator[dict[str, Tensor]]:
    """This process's batches, starting at the given step, each with its samples' `number`."""
    numbers = list_numbers(config, accelerator.process_index, accelerator.num_processes, step)
    loader = DataLoader(
        Numbered(samples), config.batch, sampler=numbers, num_workers=config.workers, worker_init_fn=_one_thread
    )
    return iter(loader)


def list_numbers(config: TrainConfig, process: int, processes: int, step: int) -> Iterator[int]:
    """Sample indices of one process: each step takes the next ones, split evenly between processes."""
    for part in range(step * config.accumulate, config.steps * config.accumulate):
        first = (part * processes + process) * config.batch
        yield from range(first, first + config.batch)


class Numbered(Dataset[dict[str, Tensor]]):
    """Samples with their index as `number`."""

    def __init__(self, samples: Samples):
        self.samples = samples

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {**self.samples[number], "number": torch.tensor(number)}


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def run_settings(config: TrainConfig, objective: Objective, samples: Samples, processes: int) -> dict:
    """Settings that must match to resume a run. How a step's samples are distributed may change."""
    fixed = ("steps", "warmup", "ema", "clip", "seed", "precision")
    settings = {name: value for name, value in asdict(config).items() if name in fixed}
    settings |= {"objective": objective.settings(), "samples": samples.settings()}
    return settings | {"samples_a_step": config.batch * config.accumulate * processes}


def progress_bar(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), disable=not shown)
