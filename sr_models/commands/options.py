"""Options that several commands share. A dataclass here becomes a group of flags in each command that contains it.

A field is a flag, its type defines the flag's values, and the text under it is the flag's help. Fields that are not
`kw_only` can be given without their name. Slow imports happen only when a command runs, so that `--help` is fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter, Token
from cyclopts.validators import Number

if TYPE_CHECKING:
    from ..jobs.model_choice import ModelChoice


def whole(type_: type[int], tokens: Sequence[Token]) -> int:
    """The converter for whole numbers. Raises ValueError for 1.5, which cyclopts would round."""
    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        raise ValueError(f'"{text}" is not a whole number') from None


def finite(type_: object, value: float) -> None:
    """The validator that refuses nan and inf, which comparisons let pass."""
    if not isfinite(value):
        raise ValueError("Must be a finite number.")


Device = Literal["auto", "cpu", "cuda", "mps"]
Whole = Annotated[int, Parameter(converter=whole)]
AtLeastZero = Annotated[Whole, Parameter(validator=Number(gte=0))]
AtLeastOne = Annotated[Whole, Parameter(validator=Number(gte=1))]
Seed = Annotated[Whole, Parameter(validator=Number(gte=0, lt=2**63))]
Amount = Annotated[float, Parameter(validator=(finite, Number(gte=0)))]
Rate = Annotated[float, Parameter(validator=(finite, Number(gt=0)))]
Share = Annotated[float, Parameter(validator=(finite, Number(gte=0, lt=1)))]
# Has no `--no-` form, because off is the default.
Switch = Annotated[bool, Parameter(negative=(), show_default=False)]
Output = Annotated[Path, Parameter(alias="-o")]
flat = Parameter(name="*")
"""Makes a group's fields flags of the command: `--steps`, not `--training.steps`."""


@flat
@dataclass(frozen=True, kw_only=True)
class OpeningOptions:
    """How a model is opened."""

    autoencoder: Path | None = None
    "The VQ-f4 autoencoder of a published file; by default `autoencoder_vq_f4.pth` in the same folder."
    device: Device = "auto"
    "Device to compute on; auto is the fastest available."
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    "Precision; auto is the fastest without visible loss."


@flat
@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model to use: one in a file, or a one-step LoRA on its base."""

    model: str = "bundled"
    "`bundled`, or the file of a TAD-SR, SinSR, ResShift x4 or own model."
    recipe: str = "auto"
    "tad-sr, sinsr, resshift or resshift-s4; with --base, tsd-sr or tsd-sr-mse; auto: from the file name."
    opening: OpeningOptions = field(default_factory=OpeningOptions)
    base: Path | None = None
    """For TSD-SR: Stable Diffusion 3 medium, as a diffusers folder or a checkpoint file. For your own LoRA on 1.5, 2.1
    or SDXL: its diffusers folder."""
    lora: Path | None = None
    "The folder of TSD-SR's or your own LoRA (two files), or a file from `convert`."
    embeddings: Path | None = None
    "TSD-SR's prompt embeddings: the folder with prompt_embeds.pt and pool_embeds.pt."
    prompt: str | None = None
    "Encode this text instead of TSD-SR's published prompt."
    offload: Switch = False
    "Keep parts of TSD-SR on the CPU while they are not in use."

    def choice(self) -> ModelChoice:
        from ..jobs.model_choice import ModelChoice

        settings = asdict(self)
        return ModelChoice(**settings.pop("opening"), **settings)
