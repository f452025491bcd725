"""`onestep-sr train faithful`, `detailed`, `join`, `teacher`, `student` and `mix`: small models of our own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .options import AtLeastOne, Output, Switch, Whole, flat
from .training_options import (
    DetailedTraining,
    DetailWeightOptions,
    PairOptions,
    PictureTraining,
    StudentWeightOptions,
    TrainingOptions,
    say_result,
)

if TYPE_CHECKING:
    from ..training.runs import Crops


@flat
@dataclass(frozen=True, kw_only=True)
class PhotoOptions:
    """Training pictures."""

    data: Path = field(kw_only=False)
    "Folder of pictures, including its subfolders."
    crop: Whole = 128
    "Side of the HR crops, a multiple of 128."

    def crops(self) -> Crops:
        from ..training.runs import Crops

        return Crops(self.data, self.crop)


@dataclass(frozen=True, kw_only=True)
class Faithful:
    """Train a small x4 network from picture to picture to the least error.

    Run it again to resume.
    """

    data: Path = field(kw_only=False)
    "A folder of pictures, read with its subfolders and kept in memory."
    training: PictureTraining
    pairs: PairOptions = field(default_factory=PairOptions)
    channels: Whole = 64
    "Width of the network, a multiple of 4."
    blocks: Whole = 16
    "Residual blocks of the network."
    learning_rate: float = 5e-4
    "AdamW's learning rate."
    start: Path | None = None
    "Start from this model's weights."
    teacher: Path | None = None
    "Folder of a teacher's x4 results for the pictures, each shrunk by Pillow's bicubic first, with the same names."
    imitation: float = 0.7
    "With --teacher: the share of its results in the targets, 0 to 1."

    def __call__(self) -> None:
        from ..networks.conv_sr import ConvSRConfig
        from ..training.picture_runs import FaithfulRun, train_faithful

        network, pairs = ConvSRConfig(self.channels, self.blocks), self.pairs.built()
        rate, teacher = self.learning_rate, self.teacher
        run = FaithfulRun(self.data, network, pairs, rate, self.start, teacher, self.imitation)
        say_result("model", train_faithful(self.training.config_of(self), run))


@dataclass(frozen=True, kw_only=True)
class Detailed:
    """Train a network of `train faithful` further, to detail as a person sees it.

    Run it again to resume.
    """

    data: Path = field(kw_only=False)
    "A folder of pictures, read with its subfolders and kept in memory."
    start: Path
    "The faithful model's model.safetensors."
    perceptual: Path
    "Folder with the weights of LPIPS (alex.pth, torchvision's AlexNet) and DISTS (torchvision's VGG16)."
    training: DetailedTraining
    pairs: PairOptions = field(default_factory=PairOptions)
    learning_rate: float = 1e-4
    "AdamW's learning rate."
    discriminator_learning_rate: float = 1e-4
    "The discriminator's learning rate."
    dists_every: AtLeastOne = 2
    "DISTS sees one of this many pictures of a batch, because it costs more than all else."
    discriminator: Path | None = None
    "checkpoint.safetensors of an earlier detailed run, whose discriminator is trained further; else a new one."
    weights: DetailWeightOptions = field(default_factory=DetailWeightOptions)

    def __call__(self) -> None:
        from ..training.picture_runs import DetailedRun, train_detailed

        run = DetailedRun(
            self.data,
            self.start,
            self.perceptual,
            self.pairs.built(),
            self.weights.built(),
            self.learning_rate,
            self.discriminator_learning_rate,
            self.dists_every,
            self.discriminator,
        )
        say_result("model", train_detailed(self.training.config_of(self), run))


@dataclass(frozen=True, kw_only=True)
class Join:
    """Write one model from a faithful one and the detailed one that was trained from it.

    Its `--detail` can be any number from 0 to 1: the weights are mixed.
    """

    faithful: Path = field(kw_only=False)
    "The faithful model's model.safetensors."
    detailed: Path = field(kw_only=False)
    "The detailed model's model.safetensors."
    output: Output
    "The file to write."
    detail: float = 1.0
    "The model's default, from 0 (faithful) to 1 (detailed)."
    card: Path | None = None
    "A text file to store in the model: data, licence, commands."

    def __call__(self) -> None:
        from ..training.picture_runs import join

        card = "" if self.card is None else self.card.read_text(encoding="utf-8")
        say_result("model", join(self.faithful, self.detailed, self.detail, card, self.output))


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Train a ResShift teacher with the size of the bundled model.

    Run it again to resume.
    """

    photos: PhotoOptions = field(kw_only=False)
    training: TrainingOptions
    learning_rate: float = 5e-4
    "AdamW's learning rate."
    init: Path | None = None
    "Start from this model's weights."
    regression: Switch = False
    "Train the one-step regression baseline instead."

    def __call__(self) -> None:
        from ..training.runs import train_teacher

        config, crops = self.training.config_of(self), self.photos.crops()
        say_result("model", train_teacher(config, crops, self.learning_rate, self.init, self.regression))


@dataclass(frozen=True, kw_only=True)
class Student:
    """Distil a teacher into one step (TAD-SR).

    Run it again to resume.
    """

    photos: PhotoOptions = field(kw_only=False)
    teacher: Path
    "The teacher's model.safetensors."
    training: TrainingOptions
    learning_rate: float = 5e-5
    "AdamW's learning rate."
    weights: StudentWeightOptions = field(default_factory=StudentWeightOptions)

    def __call__(self) -> None:
        from ..training.runs import train_student

        config, crops = self.training.config_of(self), self.photos.crops()
        say_result("model", train_student(config, crops, self.learning_rate, self.teacher, self.weights.built()))


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Average a student with its teacher: less fine detail, but higher fidelity."""

    student: Path = field(kw_only=False)
    "The student's model.safetensors."
    teacher: Path = field(kw_only=False)
    "The teacher that it was distilled from."
    output: Output
    "The file to write."
    share: float = 0.8
    "The student's share of the weights, 0 to 1."

    def __call__(self) -> None:
        from ..training.runs import mix

        say_result("model", mix(self.student, self.teacher, self.share, self.output))
