"""`onestep-sr prepare`, `train tsd` and `train tad-sd`: one-step LoRAs for Stable Diffusion."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from .options import AtLeastOne, AtLeastZero, Device, Output, Whole, flat
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
ENCODER = "features of the base's own VAE encoder, as no weights of LPIPS were found (--lpips takes them)"


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Make training data: crops, degraded LR counterparts, latents and prompts, once.

    Run it again to resume.
    """

    folder: Path = field(kw_only=False)
    "Pictures, read with their subfolders, captions in .txt beside them."
    output: Output
    "Folder for the shards."
    base: Base
    crop: Whole = 512
    "Side of the HR crops, a multiple of 64."
    crops: AtLeastOne = 4
    "Crops of each picture."
    shard: AtLeastOne = 64
    "Crops in a file."
    seed: Whole = 0
    "Seed of crops and degradation."
    captions: bool = True
    "Encode the captions; needs the base's text encoders."
    embeddings: Path | None = None
    "The default prompt, encoded: a folder with prompt_embeds.pt and pool_embeds.pt."
    null_embeddings: Path | None = None
    "The empty prompt, encoded in the same way."
    lr: Path | None = None
    "Your own LR pictures, under the same names."
    targets: Path | None = None
    "A multi-step teacher's results, for tad-sd."
    device: Device = "auto"
    "Where to encode."
    precision: Precision = "no"
    "`no` is fp32; auto is bf16 or fp16 where the hardware computes in it."
    workers: AtLeastZero = 2
    "Processes that read pictures."

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
            warn(f"{file} was left out: it cannot be read, or has no counterpart of the right size.")
        say(f"The training data is in {self.output}")

    def config(self) -> PrepareConfig:
        from ..training.sd.prepare import Partners, PrepareConfig

        partners = Partners(self.lr, self.targets)
        return PrepareConfig(self.crop, self.crops, self.shard, self.seed, partners=partners)


@flat
@dataclass(frozen=True, kw_only=True)
class LoraTraining:
    """What a LoRA is trained on, and how the base is held in memory."""

    data: Path = field(kw_only=False)
    "A folder made by onestep-sr prepare."
    base: Base
    rank: AtLeastOne = 64
    "Rank of the student's LoRA on the network."
    rank_vae: AtLeastOne = 64
    "Rank of the student's LoRA on the VAE's encoder."
    start: Path | None = None
    "Start from these LoRA files, as published ones."
    teacher: Path | None = None
    "A LoRA file applied to the teacher."
    gradient_checkpointing: bool = True
    "Less memory, a third slower."
    fp8: bool = False
    "Keep the base in fp8: half its memory, less exact."
    shard: bool = False
    "Spread the base over the processes (FSDP)."

    def run(self, rank_auxiliary: int) -> SDRun:
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
    learning_rate: float = 5e-6
    "AdamW's, of the student."
    auxiliary_learning_rate: float = 1e-6
    "AdamW's, of the auxiliary model."
    guidance: float = 7.5
    "Classifier-free guidance of teacher and auxiliary."
    early_steps: AtLeastZero = 50_000
    "For this many steps the student stays near the HR latent; later ones sample along DASM."
    matching: Literal["score", "velocity"] = "score"
    "What target score matching compares: score, as in the paper; velocity, as published."
    rank_auxiliary: AtLeastOne = 64
    "Rank of the auxiliary's LoRA."

    def __call__(self) -> None:
        from ..measures.lpips import find_lpips
        from ..training.sd.runs import train_tsd
        from ..training.sd.tsd_objective import TSDConfig

        distance = find_lpips(self.training.lpips)
        say_once(f"Perceptual loss: {LPIPS if distance else ENCODER}.")
        method = TSDConfig(
            self.learning_rate, self.auxiliary_learning_rate, self.guidance, self.early_steps, self.matching
        )
        config, run = self.training.config_of(self), self.lora.run(self.rank_auxiliary)
        say_result("LoRA", train_tsd(config, run, method, distance))


@dataclass(frozen=True, kw_only=True)
class TadSd:
    """Train a one-step SR LoRA by time-aware distillation (TAD-SR).

    It learns from the targets that were prepared, or from HR. Run it again to resume.
    """

    lora: LoraTraining = field(kw_only=False)
    training: TadTraining
    learning_rate: float = 5e-6
    "AdamW's, of the student."
    discriminator_learning_rate: float = 5e-5
    "AdamW's, of the discriminator."
    auxiliary_learning_rate: float = 1e-6
    "AdamW's, of the auxiliary model."
    weights: StudentWeightOptions = field(default_factory=StudentWeightOptions)
    rank_auxiliary: AtLeastZero = 0
    "Rank of an auxiliary LoRA, which the base is then compared with in place of the target; 0: none."

    def __call__(self) -> None:
        from ..training.sd.runs import train_tad
        from ..training.sd.tad_objective import TADConfig

        method = TADConfig(
            self.learning_rate, self.discriminator_learning_rate, self.auxiliary_learning_rate, self.weights.built()
        )
        config, run = self.training.config_of(self), self.lora.run(self.rank_auxiliary)
        say_result("LoRA", train_tad(config, run, method))
