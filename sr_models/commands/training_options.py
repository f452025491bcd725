"""Options that several training commands share, and their output."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .options import Amount, AtLeastOne, AtLeastZero, Output, Seed, Share, Whole, flat
from .run_file import run_file_text
from .terminal import say

if TYPE_CHECKING:
    from ..training.detailed_objective import DetailWeights
    from ..training.loop import TrainConfig
    from ..training.pictures import PairConfig
    from ..training.pixel_objectives import StudentWeights

Precision = Literal["auto", "no", "bf16", "fp16"]


@flat
@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Options of every training command."""

    output: Output
    "Folder for checkpoints, logs and the result."
    config: Path | None = None
    "Read options from this run.toml; options on the command line override it."
    steps: AtLeastOne = 30_000
    "Number of weight updates."
    batch: AtLeastOne = 16
    "Crops per process and backward pass."
    accumulate: AtLeastOne = 1
    "Backward passes per update."
    ema: Share = 0.999
    "Decay of the weights' moving average."
    precision: Precision = "auto"
    "`no` is fp32; auto is bf16 or fp16 if the hardware supports it."
    seed: Seed = 0
    "Seed for crops, degradation and noise."
    workers: AtLeastZero = 1
    "Number of processes that read pictures."
    save_every: AtLeastOne = 500
    "Steps between checkpoints."
    validation: Path | None = None
    "Folder of pictures for validation scores and sample strips."

    def config_of(self, command: Any) -> TrainConfig:
        """The training settings for `command`, the command with these options: those of the same names.

        Its run.toml contains the resolved precision, so that the run resumes with it on another machine.
        """
        from ..training.loop import TrainConfig

        chosen = replace(self, precision=resolved(self.precision))
        names = {each.name for each in fields(TrainConfig)}
        settings = {name: value for name, value in vars(chosen).items() if name in names}
        return TrainConfig(**settings, run_file=run_file_text(replace(command, training=chosen)))


@flat
@dataclass(frozen=True, kw_only=True)
class TsdTraining(TrainingOptions):
    """Training length and validation of a LoRA."""

    steps: AtLeastOne = 100_000
    batch: AtLeastOne = 2
    warmup: AtLeastZero = 3000
    "Number of steps in which the learning rates rise."
    best: Literal["psnr", "ssim", "niqe", "lpips", "dists", "musiq"] = "psnr"
    "The validation score that selects the best result."
    lpips: Path | None = None
    "Folder with AlexNet's weights and LPIPS's alex.pth; for DISTS, also VGG16's and DISTS's weights."
    musiq: Path | None = None
    "MUSIQ's weights, to validate with it: musiq_koniq_ckpt-*.pth."


@flat
@dataclass(frozen=True, kw_only=True)
class TadTraining(TsdTraining):
    """TSD's options with other defaults."""

    steps: AtLeastOne = 30_000
    warmup: AtLeastZero = 1000


@flat
@dataclass(frozen=True, kw_only=True)
class PictureTraining(TsdTraining):
    """As TSD's, for a small network."""

    steps: AtLeastOne = 24_000
    batch: AtLeastOne = 16
    warmup: AtLeastZero = 200


@flat
@dataclass(frozen=True, kw_only=True)
class DetailedTraining(TsdTraining):
    """As TSD's, for the second phase of a small network."""

    steps: AtLeastOne = 20_000
    batch: AtLeastOne = 8
    warmup: AtLeastZero = 200


@flat
@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """How the pairs of a small network are made."""

    crop: Whole = 192
    "Side of the HR crops, a multiple of 4, or of 16 for `train detailed`."
    clean: float = 0.5
    "Share of pairs whose small picture is shrunk without damage, 0 to 1."
    plain: float = 0.02
    "Share of pairs of one colour or a gradient, 0 to 1."
    grey: float = 0.05
    "Share of pairs without colour, 0 to 1."
    shrunk: float = 0.25
    "Share of pairs whose large picture is shrunk too, which makes photos sharper, 0 to 1."

    def built(self) -> PairConfig:
        from ..canvas.degradation import Degradation
        from ..training.pictures import PairConfig

        return PairConfig(
            self.crop,
            plain=self.plain,
            grey=self.grey,
            shrunk=self.shrunk,
            degradation=Degradation(clean=self.clean),
        )


@flat
@dataclass(frozen=True, kw_only=True)
class DetailWeightOptions:
    """Weights of the losses of the detailed phase."""

    pixel_weight: float = 1.0
    "Weight of the absolute error."
    coarse_weight: float = 2.0
    "Weight of the absolute error of means over 4 x 4 px."
    lpips_weight: float = 0.5
    "Weight of LPIPS on AlexNet."
    dists_weight: float = 0.5
    "Weight of DISTS."
    adversarial_weight: float = 0.05
    "Weight of the discriminator."
    grid_weight: float = 1.0
    "Weight of what repeats every 4 px."
    chroma_weight: float = 2.0
    "Weight of the absolute error of colours without their brightness."

    def built(self) -> DetailWeights:
        from ..training.detailed_objective import DetailWeights

        return DetailWeights(
            self.pixel_weight,
            self.coarse_weight,
            self.lpips_weight,
            self.dists_weight,
            self.adversarial_weight,
            self.grid_weight,
            self.chroma_weight,
        )


@flat
@dataclass(frozen=True, kw_only=True)
class StudentWeightOptions:
    """Weights of the losses of time-aware distillation."""

    regression_weight: Amount = 1.0
    "Weight of the distance to the target, the teacher's result."
    score_weight: Amount = 1.0
    "Weight of high-frequency score distillation."
    adversarial_weight: Amount = 0.02
    "Weight of the time-aware discriminator."

    def built(self) -> StudentWeights:
        from ..training.pixel_objectives import StudentWeights

        return StudentWeights(self.regression_weight, self.score_weight, self.adversarial_weight)


def resolved(precision: Precision) -> str:
    """The precision to use; `auto` is the fastest on this machine."""
    if precision != "auto":
        return precision
    from ..training.loop import fastest_precision

    return fastest_precision()


def say_once(line: str) -> None:
    """Print a line from the first process only, when accelerate starts several."""
    if os.environ.get("RANK", "0") == "0":
        say(line)


def say_result(kind: str, path: Path) -> None:
    say_once(f"The {kind} is in {path}")
