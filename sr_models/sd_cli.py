"""`onestep-sr prepare` and `onestep-sr train tsd`: training on Stable Diffusion. Heavy imports wait."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

from .run_file import ConfigOption, run_file_text
from .train_cli import (
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
LPIPS = "LPIPS on AlexNet"
ENCODER = "features of the base's own VAE encoder, as no weights of LPIPS are here (--lpips takes them)"
FolderOption = Optional[Path]  # noqa: UP045


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
    device: Annotated[str, typer.Option(help="Where to encode: cpu, cuda; auto picks.")] = "auto",
    precision: TrainPrecisionOption = "no",
    workers: WorkersOption = 2,
) -> None:
    """Make training data: crops, degraded twins, latents and prompts, once. Run it again to go on."""
    import torch
    from rich.progress import Progress

    from .distill.prepare import PrepareConfig, count_pictures
    from .distill.sd_runs import FROZEN_DTYPES, PromptSource, prepare_data
    from .errors import UserError

    if precision not in FROZEN_DTYPES:
        raise UserError(f"Precision {precision!r} is unknown: choose one of {', '.join(FROZEN_DTYPES)}.")
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    total = count_pictures(folder) * crops if folder.is_dir() else 0
    with Progress() as progress:
        task = progress.add_task("crops", total=total)
        broken = prepare_data(
            folder,
            output,
            base,
            PrepareConfig(crop, crops, shard, seed),
            PromptSource(embeddings, null_embeddings, captions),
            device=where,
            dtype=FROZEN_DTYPES[precision],
            workers=workers,
            report=lambda crops: progress.advance(task, crops),
        )
    for file in broken:
        typer.echo(f"{file} cannot be read as a picture and was left out.", err=True)
    typer.echo(f"The training data is in {output}")


@train_app.command("tsd")
def train_tsd_command(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="A folder made by onestep-sr prepare.")],
    base: BaseOption,
    output: OutputOption,
    config: ConfigOption = None,
    steps: StepsOption = 100_000,
    batch: BatchOption = 2,
    accumulate: AccumulateOption = 1,
    learning_rate: Annotated[float, typer.Option(help="AdamW's, of the student.")] = 5e-6,
    auxiliary_learning_rate: Annotated[float, typer.Option(help="AdamW's, of the auxiliary model.")] = 1e-6,
    warmup: Annotated[int, typer.Option(min=0, help="Steps in which the learning rates rise.")] = 3000,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance of teacher and auxiliary.")] = 7.5,
    early_steps: Annotated[
        int, typer.Option(min=0, help="So many steps hold on to the HR latent; later ones sample along DASM.")
    ] = 50_000,
    rank: Annotated[int, typer.Option(min=1, help="Of the student's LoRA on the network.")] = 64,
    rank_vae: Annotated[int, typer.Option(min=1, help="Of the student's LoRA on the VAE's encoder.")] = 64,
    rank_auxiliary: Annotated[int, typer.Option(min=1, help="Of the auxiliary's LoRA.")] = 64,
    start: Annotated[FolderOption, typer.Option(help="Go on from these LoRA files, as published ones.")] = None,
    teacher: Annotated[FolderOption, typer.Option(help="A LoRA file that the teacher wears.")] = None,
    lpips: Annotated[FolderOption, typer.Option(help="A folder with AlexNet's weights and LPIPS's alex.pth.")] = None,
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory, a third slower.")] = True,
    ema: EmaOption = 0.999,
    precision: TrainPrecisionOption = "bf16",
    seed: SeedOption = 0,
    workers: WorkersOption = 1,
    save_every: SaveOption = 500,
    validation: ValidationOption = None,
    best: Annotated[str, typer.Option(help="The score that decides the best result: psnr, ssim or niqe.")] = "psnr",
) -> None:
    """Train a one-step SR LoRA by target score distillation (TSD-SR). Run it again to go on where it stopped."""
    from .distill.features import find_lpips
    from .distill.loop import TrainConfig
    from .distill.sd_runs import TSDRun, train_tsd
    from .distill.shared_base import Ranks
    from .distill.tsd_objective import TSDConfig

    training = TrainConfig(
        output,
        steps,
        batch,
        accumulate,
        warmup,
        ema=ema,
        precision=precision,
        seed=seed,
        workers=workers,
        save_every=save_every,
        validation=validation,
        best=best,
        run_file=run_file_text(context),
    )
    method = TSDConfig(learning_rate, auxiliary_learning_rate, guidance, early_steps)
    ranks = Ranks(rank, rank_vae, rank_auxiliary)
    distance = find_lpips(lpips)
    _say_once(f"Perceptual loss: {LPIPS if distance else ENCODER}.")
    run = TSDRun(base, data, ranks, method, start, teacher, gradient_checkpointing)
    result = train_tsd(training, run, distance)
    _say_once(f"The LoRA is in {result}")


def _say_once(line: str) -> None:
    """From the first of the processes that accelerate launches."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(line)
