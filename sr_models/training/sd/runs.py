"""Training runs on Stable Diffusion: prepare data from pictures, and train a LoRA on prepared data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...checkpoints.header import read_header
from ...checkpoints.prompt_embeddings import PromptEmbeddings, read_embeddings
from ...diffusers_host import sd3_prompts, unet_prompts
from ...diffusers_host.unet_files import needs_float32
from ...errors import UserError
from ...families import tad_seesr
from ...families.registry import identify, read_lora
from ...families.tagger import read_tagger
from ...families.tsd_sr import TSD_PROMPT
from ...measures.lpips import Lpips
from ..loop import TrainConfig, train
from . import prepare as preparing
from .bases import UNET, Base, Condition, open_base, store_in_fp8
from .seesr_base import SeeSRBase
from .seesr_objective import SeeSRObjective
from .sharding import shard
from .shards import ShardSamples, read_prompts
from .shared_base import Ranks, SharedBase
from .tad_objective import TADConfig, TADObjective
from .tsd_objective import TSDConfig, TSDObjective

FROZEN_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Text = Callable[[str], Condition]


@dataclass(frozen=True)
class PromptSource:
    """Where encoded prompts come from: files in TSD-SR's published format, or the base's own text encoders.

    `captions`: also encode the texts next to the pictures, which needs text encoders.
    """

    embeddings: Path | None = None
    null_embeddings: Path | None = None
    captions: bool = True
    prompt: str = TSD_PROMPT


def prepare_data(
    folder: Path,
    output: Path,
    base: Path,
    config: preparing.PrepareConfig,
    source: PromptSource,
    *,
    device: torch.device,
    dtype: torch.dtype,
    workers: int,
    report: preparing.Report,
) -> list[Path]:
    """Create training data for a base. Returns the pictures that were skipped; see `prepare.prepare`."""
    opened = open_base(base, dtype)
    needs_text = source.captions or source.embeddings is None or source.null_embeddings is None
    text = open_text_encoders(base, opened, device, dtype) if needs_text else None
    prompts = (
        _condition(source.embeddings, text, source.prompt),
        _condition(source.null_embeddings, text, ""),
    )
    vae, scaling = opened.vae.to(device), float(opened.vae.config.scaling_factor)
    if needs_float32(vae, dtype):
        vae.float()

    def latents(pictures: Tensor) -> Tensor:
        return scaling * vae.encode(pictures.to(device, vae.dtype)).latent_dist.mode().float()

    encoders = preparing.Encoders(latents, text if source.captions else None)
    return preparing.prepare(folder, output, config, encoders, prompts, base=base.name, workers=workers, report=report)


def _condition(file: Path | None, text: Text | None, words: str) -> Condition:
    """Read a file, or else use the text encoders."""
    if file is None:
        assert text is not None  # noqa: S101 (for the type checker)
        return text(words)
    return _as_condition(read_embeddings(file))


def _as_condition(embeddings: PromptEmbeddings) -> Condition:
    return Condition(embeddings.prompt.float(), embeddings.pooled.float())


def open_text_encoders(path: Path, base: Base, device: torch.device, dtype: torch.dtype) -> Text:
    """Open the base's own text encoders, as a function from a text to its condition.

    Raises UserError if they are missing.
    """
    prompts = unet_prompts if base.family is UNET else sd3_prompts
    encode = prompts.open_text_encoders(path, device=device, dtype=dtype)
    return lambda words: _as_condition(encode(words))


@dataclass(frozen=True)
class SDRun:
    """What to train on: the base, the prepared data, the LoRA to start from and the teacher's LoRA, if any. The next
    three save memory: recompute activations, store the base's linear layers in fp8, shard the base over processes.
    `tagger` are RAM's files, as in `read_tagger`, for a start from SeeSR's."""

    base: Path
    data: Path
    ranks: Ranks
    start: Path | None = None
    teacher: Path | None = None
    gradient_checkpointing: bool = True
    fp8: bool = False
    shard: bool = False
    tagger: Path | None = None


def train_tsd(config: TrainConfig, run: SDRun, method: TSDConfig, lpips: Lpips | None) -> Path:
    """Train a one-step student by TSD-SR. Returns the folder with its LoRA files.

    Raises UserError like `train`, and for data that was prepared for another kind of base.
    """
    samples, base = _opened(config, run)
    return train(config, TSDObjective(base, *read_prompts(run.data), method, lpips), samples)


def train_tad(config: TrainConfig, run: SDRun, method: TADConfig) -> Path:
    """Train a one-step student by time-aware distillation; otherwise like `train_tsd`.

    If the run starts from SeeSR's files, the student is TAD-SeeSR, and the result a folder with its two networks.
    """
    if run.start is not None and _is_seesr(run.start):
        return _train_seesr(config, run, run.start, method)
    if run.tagger is not None:
        raise UserError(
            f"--tagger is for TAD-SeeSR, but --start is {run.start}: give SeeSR's folder, or remove --tagger."
        )
    samples, base = _opened(config, run)
    return train(config, TADObjective(base, *read_prompts(run.data), method), samples)


def _is_seesr(start: Path) -> bool:
    """Whether files are SeeSR's folder, or the single file that `convert` writes of it."""
    if start.is_file():
        return identify(start) is tad_seesr.FAMILY
    unet = start / tad_seesr.FILES[0]
    return unet.is_file() and not tad_seesr.FAMILY.condition.missing(read_header(unet))


def _train_seesr(config: TrainConfig, run: SDRun, start: Path, method: TADConfig) -> Path:
    """Train TAD-SeeSR, from a copy of its teacher at `start`, or from a student of `run.teacher`. Raises UserError for
    options that it does not have, and for another teacher than SeeSR."""
    if run.ranks.auxiliary:
        raise UserError("Training of TAD-SeeSR does not use --rank-auxiliary: remove it.")
    if run.teacher is not None and not _is_seesr(run.teacher):
        raise UserError(f"The teacher of TAD-SeeSR is SeeSR, but --teacher is {run.teacher}: give SeeSR's folder.")
    if run.tagger is None:
        raise UserError(f"{start.name} needs RAM, whose embedding of the picture it attends to: give --tagger.")
    samples, opened = _samples_and_base(config, run)
    tagger, student = read_tagger(run.tagger, opened.vae.dtype), None if run.teacher is None else start
    base = SeeSRBase(opened, read_lora(run.teacher or start), tagger, start=student, fp8=run.fp8)
    _save_memory(base, run)
    torch.manual_seed(config.seed)
    return train(config, SeeSRObjective(base, *read_prompts(run.data), method), samples)


def _save_memory(base: SharedBase, run: SDRun) -> None:
    if run.gradient_checkpointing:
        base.enable_gradient_checkpointing()
    if run.shard:
        shard(base.network, base.family.blocks(base.network))


def _samples_and_base(config: TrainConfig, run: SDRun) -> tuple[ShardSamples, Base]:
    samples = ShardSamples(run.data, config.seed)
    opened = open_base(run.base, FROZEN_DTYPES.get(config.precision, torch.float32))
    _require_match(samples[0], opened, run)
    return samples, opened


def _opened(config: TrainConfig, run: SDRun) -> tuple[ShardSamples, SharedBase]:
    samples, opened = _samples_and_base(config, run)
    if run.fp8:
        store_in_fp8(opened.network)
    torch.manual_seed(config.seed)
    base = SharedBase(opened, run.ranks, start=run.start, teacher=run.teacher)
    _save_memory(base, run)
    return samples, base


def _require_match(sample: dict[str, Tensor], base: Base, run: SDRun) -> None:
    config: Any = base.network.config
    width = config.joint_attention_dim if base.family is not UNET else config.cross_attention_dim
    expected, found = (base.vae.config.latent_channels, width), (len(sample["z_h"]), sample["prompt"].shape[-1])
    if expected != found:
        raise UserError(
            f"{run.data} was not prepared for {run.base.name}: it has latents of {found[0]} channels and prompts of "
            f"width {found[1]}, but the base needs {expected[0]} and {expected[1]}. Run onestep-sr prepare for it."
        )
