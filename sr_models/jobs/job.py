"""What is done to one file, with which options, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..core.options import DEFAULTS, UpscaleOptions


@dataclass(frozen=True)
class Job:
    source: Path
    target: Path

    @property
    def comparison(self) -> Path:
        """Where `FileOptions.compare` puts the before/after picture."""
        return self.target.with_name(f"{self.target.stem}.compare.png")


@dataclass(frozen=True)
class FileOptions:
    """What is done to every file; see `is_too_large` for `memory`."""

    upscale: UpscaleOptions = DEFAULTS
    memory: int | None = None
    quality: int = 95
    overwrite: bool = False
    compare: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of one job: how long it took, and why it failed."""

    job: Job
    status: Literal["done", "skipped", "failed"]
    seconds: float = 0.0
    reason: str = ""
