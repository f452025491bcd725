"""`onestep-sr train ...`: the command line of training. Heavy imports wait until a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .run_file import ConfigOption, run_file_text

train_app = typer.Typer(help="Train a teacher, then distil it into a one-step student.", no_args_is_help=True)


def _resolved(precision: str) -> str:
    """`auto` by the machine at hand, so that run.toml names what the run had."""
    if precision != "auto":
        return precision
    from ..training.loop import fastest_precision

    return fastest_precision()


DataArgument = Annotated[Path, typer.Argument(help="A folder of pictures, read with its subfolders.")]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Checkpoints, logs and the model go here.")]
StepsOption = Annotated[int, typer.Option(min=1, help="Updates of the weights.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Crops per process and backward pass.")]
AccumulateOption = Annotated[int, typer.Option(min=1, help="Backward passes per update.")]
CropOption = Annotated[int, typer.Option(help="Side of the HR crops, a multiple of 128.")]
RateOption = Annotated[float, typer.Option(help="AdamW's learning rate.")]
EmaOption = Annotated[float, typer.Option(help="Decay of the averaged weights.")]
TrainPrecisionOption = Annotated[
    str,
    typer.Option(callback=_resolved, help="no (fp32), bf16 or fp16; auto: bf16 or fp16 where there are units for it."),
]
SeedOption = Annotated[int, typer.Option(help="Seed of crops, degradation and noise.")]
WorkersOption = Annotated[int, typer.Option(min=0, help="Processes that read pictures.")]
SaveOption = Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")]
ValidationOption = Annotated[Optional[Path], typer.Option(help="Pictures for PSNR and sample strips.")]  # noqa: UP045


@train_app.command("teacher")
def train_teacher(
    context: typer.Context,
    data: DataArgument,
    output: OutputOption,
    config: ConfigOption = None,
    steps: StepsOption = 30_000,
    batch: BatchOption = 16,
    accumulate: AccumulateOption = 1,
    crop: CropOption = 128,
    learning_rate: RateOption = 5e-4,
    ema: EmaOption = 0.999,
    precision: TrainPrecisionOption = "auto",
    seed: SeedOption = 0,
    workers: WorkersOption = 1,
    save_every: SaveOption = 500,
    validation: ValidationOption = None,
    init: Annotated[Optional[Path], typer.Option(help="Start from this model's weights.")] = None,  # noqa: UP045
    regression: Annotated[bool, typer.Option("--regression", help="The smooth one-step control instead.")] = False,
) -> None:
    """Train a ResShift teacher of the bundled model's size. Run it again to go on where it stopped."""
    from ..training import runs
    from ..training.loop import TrainConfig

    training = TrainConfig(
        output,
        steps,
        batch,
        accumulate,
        ema=ema,
        precision=precision,
        seed=seed,
        workers=workers,
        save_every=save_every,
        validation=validation,
        run_file=run_file_text(context),
    )
    typer.echo(
        f"The model is in {runs.train_teacher(training, runs.Crops(data, crop), learning_rate, init, regression)}"
    )


@train_app.command("student")
def train_student(
    context: typer.Context,
    data: DataArgument,
    teacher: Annotated[Path, typer.Option(help="The teacher's model.safetensors.")],
    output: OutputOption,
    config: ConfigOption = None,
    steps: StepsOption = 30_000,
    batch: BatchOption = 16,
    accumulate: AccumulateOption = 1,
    crop: CropOption = 128,
    learning_rate: RateOption = 5e-5,
    ema: EmaOption = 0.999,
    precision: TrainPrecisionOption = "auto",
    seed: SeedOption = 0,
    workers: WorkersOption = 1,
    save_every: SaveOption = 500,
    validation: ValidationOption = None,
    regression_weight: Annotated[float, typer.Option(help="Weight of the distance to the teacher's result.")] = 1.0,
    score_weight: Annotated[float, typer.Option(help="Weight of high-frequency score distillation.")] = 1.0,
    adversarial_weight: Annotated[float, typer.Option(help="Weight of the time-aware discriminator.")] = 0.02,
) -> None:
    """Distil a teacher into one step (TAD-SR). Run it again to go on where it stopped."""
    from ..training import runs
    from ..training.loop import TrainConfig
    from ..training.pixel_objectives import StudentWeights

    training = TrainConfig(
        output,
        steps,
        batch,
        accumulate,
        ema=ema,
        precision=precision,
        seed=seed,
        workers=workers,
        save_every=save_every,
        validation=validation,
        run_file=run_file_text(context),
    )
    weights = StudentWeights(regression_weight, score_weight, adversarial_weight)
    crops = runs.Crops(data, crop)
    typer.echo(f"The model is in {runs.train_student(training, crops, learning_rate, teacher, weights)}")


@train_app.command("mix")
def mix_command(
    student: Annotated[Path, typer.Argument(help="The student's model.safetensors.")],
    teacher: Annotated[Path, typer.Argument(help="The model that it was distilled from.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    share: Annotated[float, typer.Option(help="The student's share of the weights, 0 to 1.")] = 0.8,
) -> None:
    """Average a student with its teacher: less fine detail, nearer to the truth."""
    from ..training import runs

    typer.echo(f"The model is in {runs.mix(student, teacher, share, output)}")
