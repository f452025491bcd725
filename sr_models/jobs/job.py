"""What is done to one file, with which options, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..core.model import SRModel
from ..core.options import DEFAULTS, UpscaleOptions
from ..files.metadata import Metadata, describe
from ..files.picture import Picture
from ..files.whole import shortened
from .release import SOFTWARE, release


@dataclass(frozen=True)
class Job:
    """One file and its result. `compare_to` is given where the comparison's usual name is taken."""

    source: Path
    target: Path
    compare_to: Path | None = None

    @property
    def comparison(self) -> Path:
        """Where `FileOptions.compare` puts the before/after picture."""
        return self.compare_to or self.target.with_name(f"{shortened(self.target.stem)}.compare.png")


@dataclass(frozen=True)
class FileOptions:
    """What is done to every file; see `is_too_large` for `memory`.

    strip: write no metadata, neither the source's nor how the result was made. fingerprint: of the model's files
    (`ModelChoice.fingerprint`), so that results of another model are known.
    """

    upscale: UpscaleOptions = DEFAULTS
    memory: int | None = None
    quality: int = 95
    overwrite: bool = False
    compare: bool = False
    strip: bool = False
    fingerprint: str = ""

    def for_model(self, model: SRModel) -> FileOptions:
        """With the detail that the model uses if none is chosen."""
        if model.detail is None or self.upscale.detail is not None:
            return self
        return replace(self, upscale=replace(self.upscale, detail=model.detail.default))

    def described(self, source: Picture, model: SRModel) -> Metadata:
        """The metadata of a result: the source's and how the result was made, or none. No model and no seed where the
        source was only shrunk."""
        made = {"software": f"{SOFTWARE} {release()}", "scale": str(self.upscale.goal)}
        if not self.upscale.only_shrinks(source.pixels.shape[-2], source.pixels.shape[-1]):
            detail = {} if self.upscale.detail is None else {"detail": f"{self.upscale.detail:g}"}
            strength = {} if self.upscale.strength == 1 else {"strength": f"{self.upscale.strength:g}"}
            made = {"model": model.recipe.title, **made, "seed": str(self.upscale.seed), **detail, **strength}
        return describe(source.metadata, made, self.strip)


@dataclass(frozen=True)
class Outcome:
    """What became of one job: how long it took, why it failed, and what its user should know about the result."""

    job: Job
    status: Literal["done", "skipped", "failed"]
    seconds: float = 0.0
    reason: str = ""
    notices: tuple[str, ...] = ()
