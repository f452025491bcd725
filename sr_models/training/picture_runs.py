"""The two trainings of a network from picture to picture, and joining their results."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..checkpoints.low_rank import under
from ..errors import UserError
from ..families import conv_sr
from ..networks.conv_sr import SCALE, ConvSR, ConvSRConfig
from .checkpoint import read_checkpoint
from .detailed_objective import DetailedObjective, DetailWeights
from .discriminator import MULTIPLE, UNetDiscriminator
from .loop import TrainConfig, train
from .perceptual import PerceptualLosses
from .picture_objective import FaithfulObjective
from .pictures import PairConfig, PicturePairs

SMALLEST_DETAILED = 48  # px, which AlexNet's poolings need


@dataclass(frozen=True)
class FaithfulRun:
    """What is trained, and on which pictures.

    Attributes:
        data: a folder of pictures.
        start: a model of this kind whose weights the training starts from, in place of random ones.
        teacher: a folder of a teacher's results, as in `PicturePairs`.
        imitation: the share of the teacher's results in the targets, 0 to 1; without `teacher` it has no effect.
    """

    data: Path
    network: ConvSRConfig = field(default_factory=ConvSRConfig)
    pairs: PairConfig = field(default_factory=PairConfig)
    learning_rate: float = 5e-4
    start: Path | None = None
    teacher: Path | None = None
    imitation: float = 0.7


def train_faithful(config: TrainConfig, run: FaithfulRun) -> Path:
    """Returns the model's path. Raises UserError for settings or files that do not fit."""
    network = run.network
    if network.channels < SCALE or network.channels % SCALE or network.blocks < 1:
        raise UserError(
            f"A network of {network.channels} channels and {network.blocks} blocks cannot be built: choose a multiple "
            f"of {SCALE} channels and at least 1 block."
        )
    _require_share("Imitation", run.imitation)
    pairs = _pairs(run.data, run.pairs, config.seed, run.teacher)
    torch.manual_seed(config.seed)
    learner = ConvSR(network) if run.start is None else conv_sr.read_one(run.start).requires_grad_(True)
    imitation = 0.0 if run.teacher is None else run.imitation
    return train(config, FaithfulObjective(learner, run.learning_rate, imitation), pairs)


@dataclass(frozen=True)
class DetailedRun:
    """What is trained, and on which pictures.

    Attributes:
        data: a folder of pictures.
        start: the faithful model, from whose weights the training starts.
        perceptual: a folder with the weights of LPIPS on AlexNet and of DISTS.
        discriminator_rate: AdamW's learning rate for the discriminator.
        dists_every: DISTS sees one of this many pictures of a batch.
        discriminator: the checkpoint of an earlier run, whose discriminator is trained further, not a new one.
    """

    data: Path
    start: Path
    perceptual: Path
    pairs: PairConfig = field(default_factory=PairConfig)
    weights: DetailWeights = field(default_factory=DetailWeights)
    learning_rate: float = 1e-4
    discriminator_rate: float = 1e-4
    dists_every: int = 2
    discriminator: Path | None = None


def train_detailed(config: TrainConfig, run: DetailedRun) -> Path:
    """Returns the model's path. Raises UserError for settings or files that do not fit."""
    crop = run.pairs.crop
    if crop % MULTIPLE or crop < SMALLEST_DETAILED:
        raise UserError(f"Crop {crop} is not a multiple of {MULTIPLE} px from {SMALLEST_DETAILED} px: choose one.")
    pairs = _pairs(run.data, run.pairs, config.seed)
    torch.manual_seed(config.seed)
    learner = conv_sr.read_one(run.start).requires_grad_(True)
    rates = run.learning_rate, run.discriminator_rate
    perceptual = PerceptualLosses(run.perceptual, every=run.dists_every)
    objective = DetailedObjective(learner, perceptual, run.weights, rates)
    if run.discriminator is not None:
        _load_discriminator(objective.discriminator, run.discriminator)
    return train(config, objective, pairs)


def _load_discriminator(discriminator: UNetDiscriminator, path: Path) -> None:
    remedy = "choose checkpoint.safetensors of an earlier detailed run"
    tensors = under(read_checkpoint(path, remedy)[1], "weights/discriminator.")
    try:
        discriminator.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{path} does not contain a discriminator of this size: {remedy}.") from error


def join(faithful: Path, detailed: Path, detail: float, card: str, output: Path) -> Path:
    """Write one model with both sets of weights and the default position between them, 0 to 1.

    Raises UserError for files of other kinds, for networks of different sizes and for a position out of bounds.
    """
    if not 0 <= detail <= 1:
        raise UserError(f"Detail {detail:g} is out of bounds: choose a number from 0 (faithful) to 1 (detailed).")
    first, second = (conv_sr.read_one(path) for path in (faithful, detailed))
    if first.config != second.config:
        raise UserError(
            f"{faithful} and {detailed} contain networks of different sizes: choose a detailed model that was trained "
            "from this faithful one."
        )
    conv_sr.save(output, conv_sr.Ends(first, second, detail), card)
    return output


def _pairs(data: Path, config: PairConfig, seed: int, teacher: Path | None = None) -> PicturePairs:
    if config.crop < 2 * SCALE or config.crop % SCALE:
        raise UserError(
            f"Crop {config.crop} does not fit the network: choose a multiple of {SCALE} from {2 * SCALE} px."
        )
    _require_share("The share of clean pairs", config.degradation.clean)
    for name in ("plain", "grey", "shrunk"):
        _require_share(f"The share of {name} pairs", getattr(config, name))
    for folder, what in ((data, "training pictures"), (teacher, "a teacher's results")):
        if folder is not None and not folder.is_dir():
            raise UserError(f"{folder} is not a folder. Choose a folder that contains {what}.")
    return PicturePairs(data, config, seed, teacher)


def _require_share(what: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"{what} {value:g} is out of bounds: choose a number from 0 to 1.")
