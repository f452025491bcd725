"""`onestep-sr upscale` and `onestep-sr evaluate`: running models on pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from ..errors import UserError
from .options import AtLeastZero, ModelOptions, OpeningOptions, Output, Place, Seed, SizeOptions, Switch, Whole
from .terminal import FileAndTileBars, say, warn

if TYPE_CHECKING:
    from ..core.model import SRModel
    from ..core.upscale import Progress
    from ..jobs.job import FileOptions, Job, Outcome
    from ..measures.evaluate import Upscaler

Details = Annotated[list[float], Parameter(show_default=False, validator=Number(gte=0, lte=1))]


@dataclass(frozen=True, kw_only=True)
class Upscale:
    """Upscale pictures and videos.

    Finished files (same input, same settings) are skipped; files that cannot be read are reported at the end. Videos
    keep their sound, subtitles and times, and need PyAV (pip install -U av).
    """

    inputs: Annotated[list[str], Parameter(name="in")] = field(kw_only=False)
    "Files, folders or globs."
    output: Output
    "A folder, or a file for one input."
    size: SizeOptions = field(default_factory=SizeOptions)
    # Before the model, whose --strength.PART would else take --strength, too.
    amount: Annotated[float, Parameter(name="--strength", accepts_keys=False, validator=Number(gte=0, lte=1))] = 1.0
    "How much of the model's detail the result has, from 0 (as enlarged without a model) to 1."
    model: ModelOptions = field(default_factory=ModelOptions)
    tile: AtLeastZero = 0
    "Tile side in px of the network's result; 0: the model's own."
    overlap: Annotated[Whole, Parameter(validator=Number(gte=-1))] = -1
    "What tiles share, in px; -1: the model's own."
    color: Literal["auto", "none", "wavelet", "adain"] = "auto"
    "Match the result's colours to the input's."
    detail: Annotated[float | None, Parameter(validator=Number(gte=0, lte=1))] = None
    "From 0 (faithful) to 1 (detailed), for models with both; by default the model's own."
    wrap: Literal["none", "x", "y", "both"] = "none"
    "For tileable textures and panoramas: x where the right border continues at the left one, y for lower and upper."
    seed: Seed = 0
    "Seed of the noise."
    format: Literal["same", "png", "jpg", "webp", "tif", "avif", "gif"] = "same"
    "File type of the pictures; videos keep theirs, or become mkv."
    quality: Annotated[Whole, Parameter(validator=Number(gte=1, lte=100))] = 95
    "For JPEG, WebP, AVIF and videos."
    overwrite: Switch = False
    "Redo finished files, and replace files that this program did not make."
    compare: Switch = False
    "Also write a before/after picture."
    strip_metadata: Switch = False
    "Write no metadata: neither the input's (EXIF, GPS, XMP, texts) nor how the result was made."
    batch: AtLeastZero = 0
    "Tiles that go through the network at once; 0: by memory."
    memory: AtLeastZero = 0
    "MB that a result may take; larger ones go through a file. 0: by free memory."
    spill: Place | None = None
    "Folder on a disk for what an autoencoder cannot keep in memory; by default the output's."
    ray: str | None = None
    """Address of a Ray cluster to spread the files over: auto, HOST:PORT, ray://HOST:PORT, or local for this machine.
    Every node needs this package and the files under the same paths."""

    def __call__(self) -> int:
        from ..jobs.plan import plan_jobs

        self.size.target()  # refuses bad sizes before any work
        suffix, captions = None if self.format == "same" else f".{self.format}", self.model.captions
        jobs = plan_jobs(self.inputs, self.output, suffix, warn, captions=captions)
        with FileAndTileBars(len(jobs)) as bars:
            outcomes = [bars.file_done(outcome) for outcome in self._outcomes(jobs, bars.tile_done)]
        return self._report(outcomes)

    def options(self) -> FileOptions:
        """What is done to every file. On the command line 0, -1 and `auto` leave a choice open, where the options
        have None."""
        from ..core.options import UpscaleOptions
        from ..jobs.job import FileOptions

        upscale = UpscaleOptions(
            scale=4.0 if self.size.scale is None else self.size.scale,
            tile=self.tile or None,
            overlap=None if self.overlap < 0 else self.overlap,
            color=None if self.color == "auto" else self.color,
            seed=self.seed,
            detail=self.detail,
            target=self.size.target(),
            batch=self.batch or None,
            strength=self.amount,
            wrap=self.wrap,
        )
        return FileOptions(
            upscale, self.memory or None, self.quality, self.overwrite, self.compare, self.strip_metadata
        )

    def _outcomes(self, jobs: list[Job], progress: Progress) -> Iterator[Outcome]:
        """Of the jobs, done on this machine or on a cluster."""
        choice = replace(self.model.choice(), spill=self._spill(jobs))
        options = replace(self.options(), fingerprint=choice.fingerprint())
        if self.ray is not None:
            from ..jobs.cluster import run_on_cluster

            return run_on_cluster(self.ray, choice, jobs, options)
        from ..core.geometry import latent_tile
        from ..families.tagger import LICENCE_NOTICE
        from ..jobs.model_choice import open_model
        from ..jobs.run import run_jobs

        opened = open_model(choice, lambda sentence: warn(f"Warning: {sentence}"))
        # Bad values are refused here once, not for every file.
        if self.detail is not None:
            require_detail(opened.model)
        latent_tile(opened.model.recipe, opened.model.codec.factor, options.upscale.tile, options.upscale.overlap)
        say(opened.family.licence_notice)
        if choice.tagger is not None:
            say(LICENCE_NOTICE)
        for warning in opened.warnings:
            warn(f"Warning: {warning}")
        return run_jobs(opened.model, jobs, options, progress)

    def _spill(self, jobs: list[Job]) -> Path:
        """The folder for temporary files. Raises UserError if the chosen one is not a folder or is in memory."""
        from ..files.temporary import is_in_memory

        if self.spill is None:
            return jobs[0].target.parent
        if not self.spill.is_dir():
            raise UserError(f"--spill {self.spill} is not a folder: choose a folder on a disk.")
        if is_in_memory(self.spill):
            raise UserError(f"--spill {self.spill} is in memory: choose a folder on a disk.")
        return self.spill

    def _report(self, outcomes: list[Outcome]) -> int:
        """Say what became of the files; returns the exit code."""
        counts = Counter(outcome.status for outcome in outcomes)
        say(f"{counts['done']} done, {counts['skipped']} skipped (finished before), {counts['failed']} failed.")
        for outcome in outcomes:
            for notice in outcome.notices:
                warn(f"{outcome.job.source}: {notice}")
            if outcome.status == "failed":
                warn(outcome.reason)
            elif outcome.status == "done" and self.compare:
                say(f"before and after: {outcome.job.comparison}")
        return 1 if counts["failed"] else 0


def require_detail(model: SRModel) -> None:
    """Raises UserError for a model without a position between faithful and detailed."""
    if model.detail is None:
        raise UserError(f"{model.recipe.title} has no --detail: leave it out.")


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Compare models with bicubic and Lanczos: distances to HR, fine detail, artifacts, seconds per image."""

    folder: Path = field(kw_only=False)
    "HR pictures, sides multiples of 4."
    model: Annotated[list[str], Parameter(show_default="bundled")] = field(default_factory=lambda: ["bundled"])
    "`bundled` or a file; may be given several times."
    detail: Details = field(default_factory=list)
    "From 0 (faithful) to 1 (detailed), for models with both; by default their own. May be given several times."
    opening: OpeningOptions = field(default_factory=OpeningOptions)
    perceptual: Path | None = None
    "Folder with the weights of LPIPS (alex.pth, vgg.pth, torchvision's AlexNet and VGG16) and DISTS."
    json_file: Annotated[Path | None, Parameter(name="--json")] = None
    "Also write the table to this file."

    def __call__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress

        from ..measures import evaluate

        upscalers = {**evaluate.BASELINES, **dict(chain.from_iterable(map(self._upscalers, self.model)))}
        distances = evaluate.find_distances(self.perceptual)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("results", total=None)
            report = lambda done, total: progress.update(task, completed=done, total=total)  # noqa: E731
            rows = evaluate.evaluate(upscalers, self.folder, evaluate.DEGRADATIONS, distances, report)
        console = Console(width=140)
        console.print(evaluate.render(rows))
        console.print(evaluate.render_artifacts(evaluate.evaluate_artifacts(upscalers, self.folder)))
        if self.json_file is not None:
            self.json_file.write_text(evaluate.to_json(rows))

    def _upscalers(self, model: str) -> Iterator[tuple[str, Upscaler]]:
        """One for each detail, with its name. Raises UserError for a detail of a model without it."""
        from ..core.options import UpscaleOptions
        from ..core.tile_policy import TilePolicy
        from ..core.upscale import upscale
        from ..jobs.model_choice import ModelChoice, open_model

        opening = self.opening
        choice = ModelChoice(model, opening.autoencoder, device=opening.device, dtype=opening.dtype)
        opened, policy = open_model(choice), TilePolicy()
        if self.detail:
            require_detail(opened.model)
        for detail in self.detail or [None]:
            options = UpscaleOptions(detail=detail)
            name = model if detail is None else f"{model}, detail {detail:g}"
            yield name, partial(upscale, opened.model, options=options, policy=policy)
