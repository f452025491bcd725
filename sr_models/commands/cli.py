"""The command line. Heavy imports wait until a command runs, so that `--help` is quick."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from .train import train_app
from .train_sd import prepare_command

if TYPE_CHECKING:
    from ..core.upscale import Progress
    from ..jobs.job import Job, Options, Outcome
    from ..jobs.model_choice import ModelChoice

app = typer.Typer(
    name="onestep-sr",
    help="Enlarge images with one evaluation of a distilled diffusion model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(train_app, name="train")
app.command("prepare")(prepare_command)


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
RecipeOption = Annotated[
    str,
    typer.Option(help="tad-sr, sinsr, resshift or resshift-s4; with --base tsd-sr or tsd-sr-mse; auto: by the name."),
]
EmbeddingsOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="TSD-SR's prompt embeddings: the folder of prompt_embeds.pt and pool_embeds.pt."),
]
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
    tile: Annotated[int, typer.Option(min=0, help="Tile side in px of the network's result; 0: the model's own.")] = 0,
    overlap: Annotated[int, typer.Option(min=-1, help="What tiles share, in px; -1: the model's own.")] = -1,
    color: Annotated[Color, typer.Option(help="Match the result's colours to the input's.")] = Color.auto,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Precision.auto,
    format: Annotated[Format, typer.Option(help="File type of the results.")] = Format.same,
    quality: Annotated[int, typer.Option(min=1, max=100, help="For JPEG and WebP.")] = 95,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo files that are there already.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Also write a before/after picture.")] = False,
    batch: Annotated[int, typer.Option(min=0, help="Tiles that go through the network at once; 0: by memory.")] = 0,
    memory: Annotated[
        int, typer.Option(min=0, help="MB that a result may take; larger ones go through a file. 0: by what is free.")
    ] = 0,
    base: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="For TSD-SR: Stable Diffusion 3 medium, a diffusers folder or a checkpoint file. For a LoRA that was "
            "trained here on 1.5, 2.1 or SDXL: a diffusers folder of that.",
        ),
    ] = None,
    lora: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The folder of TSD-SR's LoRA or your own (two files), or a file from `convert`."),
    ] = None,
    embeddings: EmbeddingsOption = None,
    prompt: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Encode this text for TSD-SR in place of the published one."),
    ] = None,
    offload: Annotated[bool, typer.Option("--offload", help="Keep what TSD-SR does not use on the CPU.")] = False,
    ray: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="ADDRESS",
            help="Spread the files over a Ray cluster: auto, HOST:PORT, ray://HOST:PORT, or local for this machine. "
            "Every node needs this package and the files under the same paths.",
        ),
    ] = None,
) -> None:
    """Enlarge pictures. Finished files are skipped, broken ones reported at the end."""
    from ..jobs.job import Options
    from ..jobs.model_choice import ModelChoice
    from ..jobs.plan import plan_jobs

    options = Options(
        scale=scale,
        tile=tile or None,
        overlap=None if overlap < 0 else overlap,
        color=None if color is Color.auto else color.value,
        seed=seed,
        quality=quality,
        overwrite=overwrite,
        compare=compare,
        batch=batch or None,
        memory=memory or None,
    )
    jobs = plan_jobs(inputs, output, None if format is Format.same else f".{format.value}")
    choice = ModelChoice(model, autoencoder, recipe, device.value, dtype.value, base, lora, embeddings, prompt, offload)
    from .terminal import FileAndTileBars

    try:
        with FileAndTileBars(len(jobs)) as bars:
            done = _outcomes(ray, choice, jobs, options, bars.tile_done)
            outcomes = [bars.file_done(outcome) for outcome in done]
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
    from ..families.catalogue import files_in, recipes

    for line in (*recipes(), *(files_in(folder) if folder else ())):
        _say(line)


@app.command("download")
def download_command(
    name: Annotated[str, typer.Argument(help="sinsr, resshift, resshift-s4 or sd3-medium.")],
    to: Annotated[Path, typer.Option(help="The folder to put the files into.")],
    sha256: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The hash that the first file must have; else the publisher's, where there is one."),
    ] = None,
) -> None:
    """Fetch published weights, which have licences of their own. Nothing is fetched without this command."""
    from ..checkpoints.download import download
    from ..families.published import files_of
    from .terminal import byte_bar

    for position, file in enumerate(files_of(name)):
        _say(f"{file.name}, {file.licence}, from {file.url}")
        with byte_bar() as report:
            found = download(file, to, report, sha256 if position == 0 else None)
        _say(f"{to / file.name} (sha256 {found})")


@app.command("convert")
def convert_command(
    lora: Annotated[Path, typer.Argument(help="The folder of TSD-SR's LoRA or your own, or one of its two files.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
    embeddings: EmbeddingsOption = None,
) -> None:
    """Put the two files of a one-step LoRA, and the prompt embeddings if any, into one file."""
    from ..families.convert import convert

    _say(f"{output} holds {convert(lora, output, embeddings)}")


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
    from ..jobs.model_choice import ModelChoice
    from ..measures import evaluate as evaluation

    choices = {name: ModelChoice(name, autoencoder, "auto", device.value, dtype.value) for name in model}
    upscalers = {name: _upscaler(choice) for name, choice in choices.items()}
    rows = evaluation.evaluate({**evaluation.BASELINES, **upscalers}, folder, evaluation.DEGRADATIONS)
    from rich.console import Console

    Console(width=140).print(evaluation.render(rows))
    if json_file is not None:
        json_file.write_text(evaluation.to_json(rows))


def _outcomes(
    ray: str | None, choice: ModelChoice, jobs: list[Job], options: Options, progress: Progress
) -> Iterator[Outcome]:
    """Of the jobs, done on this machine or on a cluster."""
    if ray is not None:
        from ..jobs.cluster import run_on_cluster

        return run_on_cluster(ray, choice, jobs, options)
    from ..jobs.model_choice import open_model
    from ..jobs.run import run_jobs

    opened = open_model(choice)
    for warning in opened.warnings:
        typer.echo(f"Warning: {warning}", err=True)
    return run_jobs(opened.model, jobs, options, progress)


def _upscaler(choice: ModelChoice):
    from ..core.upscale import upscale
    from ..jobs.model_choice import open_model

    model = open_model(choice).model
    return lambda image: upscale(model, image)


def _say(line: str) -> None:
    typer.echo(line)


def main() -> None:
    """Run the command line; failures that a user can act on end in one sentence and exit code 1."""
    from ..errors import UserError

    try:
        app()
    except UserError as error:
        typer.echo(f"onestep-sr: {error}", err=True)
        sys.exit(1)
