"""`onestep-sr prepare`, `train tsd` and `train tad-sd`: one-step LoRAs for Stable Diffusion."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from .options import Amount, AtLeastOne, AtLeastZero, Device, Output, Rate, Seed, Whole, flat
from .terminal import say, warn
from .training_options import (
    Precision,
    StudentWeightOptions,
    TadTraining,
    TsdTraining,
    resolved,
    say_once,
    say_result,
)

if TYPE_CHECKING:
    from ..training.sd.prepare import PrepareConfig
    from ..training.sd.runs import SDRun

Base = Annotated[
    Path,
    Parameter(
        help="Stable Diffusion 3 or 3.5 (a diffusers folder or a checkpoint file), or a diffusers folder of 1.5, 2.1 "
        "or SDXL."
    ),
]
LPIPS = "LPIPS on AlexNet"
ENCODER = "features of the base's VAE encoder, because no LPIPS weights were found (set them with --lpips)"


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Prepare training data: crops, degraded LR counterparts, latents and prompts.

    Run it again to resume.
    """

    folder: Path = field(kw_only=False)
    "Folder of pictures, including its subfolders, with captions in .txt files beside them."
    output: Output
    "Folder for the shards."
    base: Base
    crop: Whole = 512
    "Side of the HR crops, a multiple of 64."
    crops: AtLeastOne = 4
    "Crops per picture."
    shard: AtLeastOne = 64
    "Crops per shard file."
    seed: Seed = 0
    "Seed for crops and degradation."
    captions: bool = True
    "Encode the captions; needs the base's text encoders."
    embeddings: Path | None = None
    "The encoded default prompt: a folder with prompt_embeds.pt and pool_embeds.pt."
    null_embeddings: Path | None = None
    "The encoded empty prompt, in the same form."
    lr: Path | None = None
    "Folder of your own LR pictures, with the same names."
    targets: Path | None = None
    "Folder of a multi-step teacher's results, for tad-sd."
    device: Device = "auto"
    "Device to encode on."
    precision: Precision = "no"
    "`no` is fp32; auto is bf16 or fp16 if the hardware supports it."
    workers: AtLeastZero = 2
    "Number of processes that read pictures."

    def __call__(self) -> None:
        from rich.progress import Progress

        from ..core.devices import find_device
        from ..training.sd.prepare import check, count_pictures
        from ..training.sd.runs import FROZEN_DTYPES, PromptSource, prepare_data

        config = self.config()
        check(self.folder, config)
        total = count_pictures(self.folder) * self.crops
        with Progress() as progress:
            task = progress.add_task("crops", total=total)
            left_out = prepare_data(
                self.folder,
                self.output,
                self.base,
                config,
                PromptSource(self.embeddings, self.null_embeddings, self.captions),
                device=find_device(self.device),
                dtype=FROZEN_DTYPES[resolved(self.precision)],
                workers=self.workers,
                report=lambda crops: progress.advance(task, crops),
            )
        for file in left_out:
            warn(f"{file} was skipped: it cannot be read, or has no counterpart of the right size.")
        say(f"The training data is in {self.output}")

    def config(self) -> PrepareConfig:
        from ..training.sd.prepare import Partners, PrepareConfig

        partners = Partners(self.lr, self.targets)
        return PrepareConfig(self.crop, self.crops, self.shard, self.seed, partners=partners)


@flat
@dataclass(frozen=True, kw_only=True)
class LoraTraining:
    """A LoRA's training data and base, and how the base is kept in memory."""

    data: Path = field(kw_only=False)
    "A folder created by onestep-sr prepare."
    base: Base
    rank: AtLeastOne = 64
    "Rank of the student's LoRA on the network."
    rank_vae: AtLeastOne = 64
    "Rank of the student's LoRA on the VAE's encoder."
    start: Path | None = None
    "A LoRA to start from, for example a published one: a file or a folder."
    teacher: Path | None = None
    "A LoRA file applied to the teacher; SeeSR's folder if --start is a TAD-SeeSR to train further."
    gradient_checkpointing: bool = True
    "Use less memory, but train a third slower."
    fp8: bool = False
    "Keep the base in fp8: half the memory, less exact."
    shard: bool = False
    "Split the base between the processes (FSDP)."

    def sd_run(self, rank_auxiliary: int) -> SDRun:
        from ..training.sd.runs import SDRun
        from ..training.sd.shared_base import Ranks

        return SDRun(
            base=self.base,
            data=self.data,
            ranks=Ranks(self.rank, self.rank_vae, rank_auxiliary),
            start=self.start,
            teacher=self.teacher,
            gradient_checkpointing=self.gradient_checkpointing,
            fp8=self.fp8,
            shard=self.shard,
        )


@dataclass(frozen=True, kw_only=True)
class Tsd:
    """Train a one-step SR LoRA by target score distillation (TSD-SR).

    Run it again to resume.
    """

    lora: LoraTraining = field(kw_only=False)
    training: TsdTraining
    learning_rate: Rate = 5e-6
    "AdamW's learning rate for the student."
    auxiliary_learning_rate: Rate = 1e-6
    "AdamW's learning rate for the auxiliary model."
    guidance: Amount = 7.5
    "Classifier-free guidance of the teacher and the auxiliary model."
    early_steps: AtLeastZero = 50_000
    "Steps of the first stage, which keeps the student near the HR latent; the second uses more DASM steps."
    matching: Literal["score", "velocity"] = "score"
    "What target score matching compares: score, as in the paper; velocity, as published."
    rank_auxiliary: AtLeastOne = 64
    "Rank of the auxiliary model's LoRA."

    def __call__(self) -> None:
        from ..measures.lpips import find_lpips
        from ..training.sd.runs import train_tsd
        from ..training.sd.tsd_objective import TSDConfig

        distance = find_lpips(self.training.lpips)
        say_once(f"Perceptual loss: {LPIPS if distance else ENCODER}.")
        method = TSDConfig(
            self.learning_rate, self.auxiliary_learning_rate, self.guidance, self.early_steps, self.matching
        )
        config, run = self.training.config_of(self), self.lora.sd_run(self.rank_auxiliary)
        say_result("LoRA", train_tsd(config, run, method, distance))


@dataclass(frozen=True, kw_only=True)
class TadSd:
    """Train a one-step SR LoRA by time-aware distillation (TAD-SR).

    It learns from the prepared targets, or from HR. With SeeSR's folder as --start, it trains TAD-SeeSR instead. Run
    it again to resume.
    """

    lora: LoraTraining = field(kw_only=False)
    training: TadTraining
    learning_rate: Rate = 5e-6
    "AdamW's learning rate for the student."
    discriminator_learning_rate: Rate = 5e-5
    "AdamW's learning rate for the discriminator."
    auxiliary_learning_rate: Rate = 1e-6
    "AdamW's learning rate for the auxiliary model."
    weights: StudentWeightOptions = field(default_factory=StudentWeightOptions)
    rank_auxiliary: AtLeastZero = 0
    "Rank of an auxiliary LoRA for score distillation, which then needs no target; 0: none."
    tagger: Path | None = None
    "RAM's file or its folder, for TAD-SeeSR."

    def __call__(self) -> None:
        from ..training.sd.runs import train_tad
        from ..training.sd.tad_objective import TADConfig

        method = TADConfig(
            self.learning_rate, self.discriminator_learning_rate, self.auxiliary_learning_rate, self.weights.built()
        )
        config, run = self.training.config_of(self), self.lora.sd_run(self.rank_auxiliary)
        result = "LoRA" if self.tagger is None else "TAD-SeeSR model"
        say_result(result, train_tad(config, replace(run, tagger=self.tagger), method))
