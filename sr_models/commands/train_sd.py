"""`onestep-sr prepare` and `onestep-sr train tsd`: training on Stable Diffusion. Heavy imports wait."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from .run_file import ConfigOption, run_file_text
from .train import (
    AccumulateOption,
    BatchOption,
    EmaOption,
    OutputOption,
    SaveOption,
    SeedOption,
    StepsOption,
    TrainPrecisionOption,
    ValidationOption,
    WorkersOption,
    train_app,
)

BaseOption = Annotated[
    Path,
    typer.Option(
        help="Stable Diffusion 3 or 3.5 (a diffusers folder or a checkpoint file), or a diffusers folder of "
        "1.5, 2.1 or SDXL."
    ),
]
if TYPE_CHECKING:
    from ..training.loop import TrainConfig

LPIPS = "LPIPS on AlexNet"
ENCODER = "features of the base's own VAE encoder, as no weights of LPIPS are here (--lpips takes them)"
FolderOption = Optional[Path]  # noqa: UP045


class Matching(str, Enum):
    score = "score"
    velocity = "velocity"


def prepare_command(
    folder: Annotated[Path, typer.Argument(help="Pictures, read with their subfolders, captions in .txt beside them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The shards go here.")],
    base: BaseOption,
    crop: Annotated[int, typer.Option(help="Side of the HR crops, a multiple of 64.")] = 512,
    crops: Annotated[int, typer.Option(min=1, help="Crops of each picture.")] = 4,
    shard: Annotated[int, typer.Option(min=1, help="Crops in a file.")] = 64,
    seed: SeedOption = 0,
    captions: Annotated[bool, typer.Option(help="Encode the captions; needs the base's text encoders.")] = True,
    embeddings: Annotated[
        FolderOption,
        typer.Option(help="The default prompt, encoded: a folder with prompt_embeds.pt and pool_embeds.pt."),
    ] = None,
    null_embeddings: Annotated[FolderOption, typer.Option(help="The empty prompt, likewise.")] = None,
    lr: Annotated[FolderOption, typer.Option(help="Your own LR pictures, under the same names.")] = None,
    targets: Annotated[FolderOption, typer.Option(help="A multi-step teacher's results, for tad-sd.")] = None,
    device: Annotated[str, typer.Option(help="Where to encode: cpu, cuda, mps; auto picks.")] = "auto",
    precision: TrainPrecisionOption = "no",
    workers: WorkersOption = 2,
) -> None:
    """Make training data: crops, degraded twins, latents and prompts, once. Run it again to go on."""
    from rich.progress import Progress

    from ..core.devices import find_device
    from ..errors import UserError
    from ..training.sd.prepare import Partners, PrepareConfig, check, count_pictures
    from ..training.sd.runs import FROZEN_DTYPES, PromptSource, prepare_data

    if precision not in FROZEN_DTYPES:
        raise UserError(f"Precision {precision!r} is unknown: choose one of {', '.join(FROZEN_DTYPES)}.")
    config = PrepareConfig(crop, crops, shard, seed, partners=Partners(lr, targets))
    check(folder, config)
    total = count_pictures(folder) * crops
    with Progress() as progress:
        task = progress.add_task("crops", total=total)
        left_out = prepare_data(
            folder,
            output,
            base,
            config,
            PromptSource(embeddings, null_embeddings, captions),
            device=find_device(device),
            dtype=FROZEN_DTYPES[precision],
            workers=workers,
            report=lambda crops: progress.advance(task, crops),
        )
    for file in left_out:
        typer.echo(f"{file} was left out: it is broken, or lacks a partner of the right size.", err=True)
    typer.echo(f"The training data is in {output}")


PreparedArgument = Annotated[Path, typer.Argument(help="A folder made by onestep-sr prepare.")]
StudentRateOption = Annotated[float, typer.Option(help="AdamW's, of the student.")]
WarmupOption = Annotated[int, typer.Option(min=0, help="Steps in which the learning rates rise.")]
RankOption = Annotated[int, typer.Option(min=1, help="Of the student's LoRA on the network.")]
VaeRankOption = Annotated[int, typer.Option(min=1, help="Of the student's LoRA on the VAE's encoder.")]
StartOption = Annotated[FolderOption, typer.Option(help="Go on from these LoRA files, as published ones.")]
TeacherOption = Annotated[FolderOption, typer.Option(help="A LoRA file that the teacher wears.")]
CheckpointingOption = Annotated[bool, typer.Option(help="Less memory, a third slower.")]
LpipsOption = Annotated[FolderOption, typer.Option(help="A folder with AlexNet's weights and LPIPS's alex.pth.")]
Fp8Option = Annotated[bool, typer.Option("--fp8/--no-fp8", help="Keep the base in fp8: half its memory, less exact.")]
ShardOption = Annotated[bool, typer.Option("--shard/--no-shard", help="Spread the base over the processes (FSDP).")]
MusiqOption = Annotated[FolderOption, typer.Option(help="MUSIQ's weights, to validate by it: musiq_koniq_ckpt-*.pth.")]
BestOption = Annotated[
    str, typer.Option(help="The score that decides the best result: psnr, ssim, niqe, lpips or musiq.")
]


@train_app.command("tsd")
def train_tsd_command(
    context: typer.Context,
    data: PreparedArgument,
    base: BaseOption,
    output: OutputOption,
    config: ConfigOption = None,
    steps: StepsOption = 100_000,
    batch: BatchOption = 2,
    accumulate: AccumulateOption = 1,
    learning_rate: StudentRateOption = 5e-6,
    auxiliary_learning_rate: Annotated[float, typer.Option(help="AdamW's, of the auxiliary model.")] = 1e-6,
    warmup: WarmupOption = 3000,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance of teacher and auxiliary.")] = 7.5,
    early_steps: Annotated[
        int, typer.Option(min=0, help="So many steps hold on to the HR latent; later ones sample along DASM.")
    ] = 50_000,
    matching: Annotated[
        Matching,
        typer.Option(help="What target score matching compares: score, as in the paper; velocity, as published."),
    ] = Matching.score,
    rank: RankOption = 64,
    rank_vae: VaeRankOption = 64,
    rank_auxiliary: Annotated[int, typer.Option(min=1, help="Of the auxiliary's LoRA.")] = 64,
    start: StartOption = None,
    teacher: TeacherOption = None,
    lpips: LpipsOption = None,
    musiq: MusiqOption = None,
    gradient_checkpointing: CheckpointingOption = True,
    fp8: Fp8Option = False,
    shard: ShardOption = False,
    ema: EmaOption = 0.999,
    precision: TrainPrecisionOption = "auto",
    seed: SeedOption = 0,
    workers: WorkersOption = 1,
    save_every: SaveOption = 500,
    validation: ValidationOption = None,
    best: BestOption = "psnr",
) -> None:
    """Train a one-step SR LoRA by target score distillation (TSD-SR). Run it again to go on where it stopped."""
    from ..measures.lpips import find_lpips
    from ..training.sd.runs import SDRun, train_tsd
    from ..training.sd.shared_base import Ranks
    from ..training.sd.tsd_objective import TSDConfig

    distance = find_lpips(lpips)
    _say_once(f"Perceptual loss: {LPIPS if distance else ENCODER}.")
    run = SDRun(base, data, Ranks(rank, rank_vae, rank_auxiliary), start, teacher, gradient_checkpointing, fp8, shard)
    method = TSDConfig(learning_rate, auxiliary_learning_rate, guidance, early_steps, matching.value)
    _say_once(f"The LoRA is in {train_tsd(_train_config(context), run, method, distance)}")


@train_app.command("tad-sd")
def train_tad_command(
    context: typer.Context,
    data: PreparedArgument,
    base: BaseOption,
    output: OutputOption,
    config: ConfigOption = None,
    steps: StepsOption = 30_000,
    batch: BatchOption = 2,
    accumulate: AccumulateOption = 1,
    learning_rate: StudentRateOption = 5e-6,
    discriminator_learning_rate: Annotated[float, typer.Option(help="AdamW's, of the discriminator.")] = 5e-5,
    auxiliary_learning_rate: Annotated[float, typer.Option(help="AdamW's, of the auxiliary model.")] = 1e-6,
    warmup: WarmupOption = 1000,
    regression_weight: Annotated[float, typer.Option(help="Weight of the distance to the target.")] = 1.0,
    score_weight: Annotated[float, typer.Option(help="Weight of high-frequency score distillation.")] = 1.0,
    adversarial_weight: Annotated[float, typer.Option(help="Weight of the time-aware discriminator.")] = 0.02,
    rank: RankOption = 64,
    rank_vae: VaeRankOption = 64,
    rank_auxiliary: Annotated[
        int, typer.Option(min=0, help="Of an auxiliary LoRA to compare the base with, not the target; 0: none.")
    ] = 0,
    start: StartOption = None,
    teacher: TeacherOption = None,
    lpips: LpipsOption = None,
    musiq: MusiqOption = None,
    gradient_checkpointing: CheckpointingOption = True,
    fp8: Fp8Option = False,
    shard: ShardOption = False,
    ema: EmaOption = 0.999,
    precision: TrainPrecisionOption = "auto",
    seed: SeedOption = 0,
    workers: WorkersOption = 1,
    save_every: SaveOption = 500,
    validation: ValidationOption = None,
    best: BestOption = "psnr",
) -> None:
    """Train a one-step SR LoRA by time-aware distillation (TAD-SR): towards the targets that were prepared, or HR."""
    from ..training.pixel_objectives import StudentWeights
    from ..training.sd.runs import SDRun, train_tad
    from ..training.sd.shared_base import Ranks
    from ..training.sd.tad_objective import TADConfig

    run = SDRun(base, data, Ranks(rank, rank_vae, rank_auxiliary), start, teacher, gradient_checkpointing, fp8, shard)
    weights = StudentWeights(regression_weight, score_weight, adversarial_weight)
    method = TADConfig(learning_rate, discriminator_learning_rate, auxiliary_learning_rate, weights)
    _say_once(f"The LoRA is in {train_tad(_train_config(context), run, method)}")


def _train_config(context: typer.Context) -> TrainConfig:
    """From the options that every training command has."""
    from ..training.loop import TrainConfig

    shared = ("output", "steps", "batch", "accumulate", "warmup", "ema", "precision", "seed", "workers", "save_every")
    options = {name: context.params[name] for name in (*shared, "validation", "best", "lpips", "musiq")}
    return TrainConfig(**options, run_file=run_file_text(context))


def _say_once(line: str) -> None:
    """From the first of the processes that accelerate launches."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(line)
