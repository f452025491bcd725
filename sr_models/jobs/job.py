"""What is done to one file, with which options, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..core.model import SRModel
from ..core.options import DEFAULTS, UpscaleOptions
from ..files.metadata import Metadata, describe
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

    def described(self, source: Metadata, model: SRModel) -> Metadata:
        """The metadata of a result: the source's and how the result was made, or none."""
        settings = {"model": model.recipe.title, "scale": str(self.upscale.goal), "seed": str(self.upscale.seed)}
        return describe(source, {"software": f"{SOFTWARE} {release()}", **settings}, self.strip)


@dataclass(frozen=True)
class Outcome:
    """What became of one job: how long it took, why it failed, and what its user should know about the result."""

    job: Job
    status: Literal["done", "skipped", "failed"]
    seconds: float = 0.0
    reason: str = ""
    notices: tuple[str, ...] = ()
