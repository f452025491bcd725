"""The command line. Heavy imports wait until a command runs, so that `--help` is quick."""

from __future__ import annotations

import sys
from collections import Counter
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    import torch

    from .loading import LoadedModel

app = typer.Typer(
    name="onestep-sr",
    help="Enlarge images with one evaluation of a distilled diffusion model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
train_app = typer.Typer(help="Train a teacher, then distil it into a one-step student.", no_args_is_help=True)
app.add_typer(train_app, name="train")


class Color(str, Enum):
    auto = "auto"
    none = "none"
    wavelet = "wavelet"
    adain = "adain"


class Device(str, Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Precision(str, Enum):
    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Format(str, Enum):
    same = "same"
    png = "png"
    jpg = "jpg"
    webp = "webp"
    tif = "tif"


ModelOption = Annotated[str, typer.Option(help="`bundled`, or a TAD-SR, SinSR, ResShift x4 or own file.")]
AutoencoderOption = Annotated[
    Optional[Path],  # noqa: UP045 (typer reads it at run time, on Python 3.10 too)
    typer.Option(help="The VQ-f4 autoencoder of a published file; else `autoencoder_vq_f4.pth` beside it."),
]
RecipeOption = Annotated[str, typer.Option(help="tad-sr, sinsr, resshift or resshift-s4; auto: by the file's name.")]
DeviceOption = Annotated[Device, typer.Option(help="Where to compute.")]
DtypeOption = Annotated[Precision, typer.Option(help="Precision; auto picks the fastest that does not show.")]


@app.command("upscale")
def upscale_command(
    inputs: Annotated[list[str], typer.Argument(metavar="IN...", help="Files, folders or globs.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder, or a file for one input.")],
    scale: Annotated[float, typer.Option(help="Output side over input side, 1 to 8.")] = 4.0,
    model: ModelOption = "bundled",
    autoencoder: AutoencoderOption = None,
    recipe: RecipeOption = "auto",
    tile: Annotated[int, typer.Option(min=0, help="Tile side in px of the x4 result; 0: the model's own.")] = 0,
    overlap: Annotated[int, typer.Option(min=-1, help="What tiles share, in px; -1: the model's own.")] = -1,
    color: Annotated[Color, typer.Option(help="Match the result's colours to the input's.")] = Color.auto,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Precision.auto,
    format: Annotated[Format, typer.Option(help="File type of the results.")] = Format.same,
    quality: Annotated[int, typer.Option(min=1, max=100, help="For JPEG and WebP.")] = 95,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo files that are there already.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Also write a before/after picture.")] = False,
) -> None:
    """Enlarge pictures. Finished files are skipped, broken ones reported at the end."""
    from .batch import Options, plan_jobs, run_jobs

    options = Options(
        scale=scale,
        tile=tile or None,
        overlap=None if overlap < 0 else overlap,
        color=None if color is Color.auto else color.value,
        seed=seed,
        quality=quality,
        overwrite=overwrite,
        compare=compare,
    )
    jobs = plan_jobs(inputs, output, None if format is Format.same else f".{format.value}")
    loaded = _load(model, autoencoder, recipe, device, dtype)
    from .terminal import FileAndTileBars

    try:
        with FileAndTileBars(len(jobs)) as bars:
            outcomes = [bars.file_done(outcome) for outcome in run_jobs(loaded.model, jobs, options, bars.tile_done)]
    except KeyboardInterrupt:
        typer.echo("Stopped: finished files are kept, nothing is half-written.", err=True)
        raise typer.Exit(130) from None
    counts = Counter(outcome.status for outcome in outcomes)
    _say(f"{counts['done']} done, {counts['skipped']} skipped (already there), {counts['failed']} failed.")
    for outcome in outcomes:
        if outcome.status == "failed":
            typer.echo(outcome.reason, err=True)
        elif outcome.status == "done" and compare:
            _say(f"before and after: {outcome.job.comparison}")
    if counts["failed"]:
        raise typer.Exit(1)


@app.command("models")
def models_command(
    folder: Annotated[Optional[Path], typer.Argument(help="Also say what each file in this folder is.")] = None,  # noqa: UP045
) -> None:
    """List the models and recipes that can run."""
    from .errors import UserError
    from .loading import identify
    from .recipe import RESSHIFT_FAMILY

    _say("bundled      the small x4 model of this project, nothing to download")
    for recipe in RESSHIFT_FAMILY.values():
        _say(f"{recipe.name:12} {recipe.title}, x{recipe.scale}, from a published file ({recipe.citation})")
    if folder is not None and not folder.is_dir():
        raise UserError(f"{folder} is no folder: name one that holds weights files.")
    for file in sorted(folder.iterdir()) if folder else ():
        if file.suffix in (".safetensors", ".pth", ".pt", ".ckpt"):
            _say(f"{file.name}: {identify(file)}")


@app.command("evaluate")
def evaluate_command(
    folder: Annotated[Path, typer.Argument(help="HR pictures, sides multiples of 4.")],
    model: Annotated[list[str], typer.Option(help="`bundled` or a file; may be given several times.")] = ["bundled"],  # noqa: B006
    autoencoder: AutoencoderOption = None,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Precision.auto,
    json_file: Annotated[Optional[Path], typer.Option("--json", help="Also write the table to this file.")] = None,  # noqa: UP045
) -> None:
    """Compare models with bicubic and Lanczos: PSNR, SSIM, NIQE, fine detail, seconds an image."""
    from . import evaluate as evaluation

    upscalers = {name: _upscaler(_load(name, autoencoder, "auto", device, dtype)) for name in model}
    rows = evaluation.evaluate({**evaluation.BASELINES, **upscalers}, folder, evaluation.DEGRADATIONS)
    from rich.console import Console

    Console(width=140).print(evaluation.render(rows))
    if json_file is not None:
        json_file.write_text(evaluation.to_json(rows))


DataArgument = Annotated[Path, typer.Argument(help="A folder of pictures, read with its subfolders.")]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Checkpoints, logs and the model go here.")]
StepsOption = Annotated[int, typer.Option(min=1, help="Updates of the weights.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Crops per process and backward pass.")]
AccumulateOption = Annotated[int, typer.Option(min=1, help="Backward passes per update.")]
CropOption = Annotated[int, typer.Option(help="Side of the HR crops, a multiple of 128.")]
RateOption = Annotated[float, typer.Option(help="AdamW's learning rate.")]
EmaOption = Annotated[float, typer.Option(help="Decay of the averaged weights.")]
TrainPrecisionOption = Annotated[str, typer.Option(help="no (fp32), bf16 or fp16.")]
SeedOption = Annotated[int, typer.Option(help="Seed of crops, degradation and noise.")]
WorkersOption = Annotated[int, typer.Option(min=0, help="Processes that read pictures.")]
SaveOption = Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")]
ValidationOption = Annotated[Optional[Path], typer.Option(help="Pictures for PSNR and sample strips.")]  # noqa: UP045


@train_app.command("teacher")
def train_teacher(
    data: DataArgument,
    output: OutputOption,
    steps: StepsOption = 30_000,
    batch: BatchOption = 16,
    accumulate: AccumulateOption = 1,
    crop: CropOption = 128,
    learning_rate: RateOption = 5e-4,
    ema: EmaOption = 0.999,
    precision: TrainPrecisionOption = "bf16",
    seed: SeedOption = 0,
    workers: WorkersOption = 1,
    save_every: SaveOption = 500,
    validation: ValidationOption = None,
    init: Annotated[Optional[Path], typer.Option(help="Start from this model's weights.")] = None,  # noqa: UP045
    regression: Annotated[bool, typer.Option("--regression", help="The smooth one-step control instead.")] = False,
) -> None:
    """Train a ResShift teacher of the bundled model's size. Run it again to go on where it stopped."""
    from .distill import runs
    from .distill.loop import TrainConfig

    config = TrainConfig(
        data,
        output,
        steps,
        batch,
        accumulate,
        crop,
        learning_rate,
        ema=ema,
        precision=precision,
        seed=seed,
        workers=workers,
        save_every=save_every,
        validation=validation,
    )
    _say(f"The model is in {runs.train_teacher(config, init, regression)}")


@train_app.command("student")
def train_student(
    data: DataArgument,
    teacher: Annotated[Path, typer.Option(help="The teacher's model.safetensors.")],
    output: OutputOption,
    steps: StepsOption = 30_000,
    batch: BatchOption = 16,
    accumulate: AccumulateOption = 1,
    crop: CropOption = 128,
    learning_rate: RateOption = 5e-5,
    ema: EmaOption = 0.999,
    precision: TrainPrecisionOption = "bf16",
    seed: SeedOption = 0,
    workers: WorkersOption = 1,
    save_every: SaveOption = 500,
    validation: ValidationOption = None,
    regression_weight: Annotated[float, typer.Option(help="Weight of the distance to the teacher's result.")] = 1.0,
    score_weight: Annotated[float, typer.Option(help="Weight of high-frequency score distillation.")] = 1.0,
    adversarial_weight: Annotated[float, typer.Option(help="Weight of the time-aware discriminator.")] = 0.02,
) -> None:
    """Distil a teacher into one step (TAD-SR). Run it again to go on where it stopped."""
    from .distill import runs
    from .distill.loop import TrainConfig
    from .distill.objectives import StudentWeights

    config = TrainConfig(
        data,
        output,
        steps,
        batch,
        accumulate,
        crop,
        learning_rate,
        ema=ema,
        precision=precision,
        seed=seed,
        workers=workers,
        save_every=save_every,
        validation=validation,
    )
    weights = StudentWeights(regression_weight, score_weight, adversarial_weight)
    _say(f"The model is in {runs.train_student(config, teacher, weights)}")


@train_app.command("mix")
def mix_command(
    student: Annotated[Path, typer.Argument(help="The student's model.safetensors.")],
    teacher: Annotated[Path, typer.Argument(help="The model that it was distilled from.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    share: Annotated[float, typer.Option(help="The student's share of the weights, 0 to 1.")] = 0.8,
) -> None:
    """Average a student with its teacher: less fine detail, nearer to the truth."""
    from .distill import runs

    _say(f"The model is in {runs.mix(student, teacher, share, output)}")


def _load(model: str, autoencoder: Path | None, recipe: str, device: Device, dtype: Precision) -> LoadedModel:
    from .loading import BUNDLED, default_dtype, load

    place = _device(device)
    precision = default_dtype(place) if dtype is Precision.auto else _torch_dtype(dtype)
    path = BUNDLED if model == "bundled" else Path(model)
    loaded = load(path, autoencoder=autoencoder, recipe=None if recipe == "auto" else recipe, dtype=precision)
    for module in loaded.modules:
        module.to(place)
    return loaded


def _device(choice: Device) -> torch.device:
    import torch

    from .errors import UserError

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if choice is Device.auto:
        return torch.device(next(name for name, there in available.items() if there))
    if not available[choice.value]:
        raise UserError(f"Device {choice.value} is not available here: choose cpu or auto.")
    return torch.device(choice.value)


def _torch_dtype(choice: Precision) -> torch.dtype:
    import torch

    return {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}[choice]


def _upscaler(loaded: LoadedModel):
    from .upscale import upscale

    return lambda image: upscale(loaded.model, image)


def _say(line: str) -> None:
    typer.echo(line)


def main() -> None:
    """Run the command line; failures that a user can act on end in one sentence and exit code 1."""
    from .errors import UserError

    try:
        app()
    except UserError as error:
        typer.echo(f"onestep-sr: {error}", err=True)
        sys.exit(1)
