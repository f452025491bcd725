"""Options that several commands share. A dataclass here becomes a group of flags in each command that contains it.

A field is a flag, its type says what the flag takes, and the text under it is the flag's help. Fields that are not
`kw_only` may be given without their name. Nothing heavy is imported before a command runs, so that `--help` is quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter, Token
from cyclopts.validators import Number

if TYPE_CHECKING:
    from ..jobs.model_choice import ModelChoice


def whole(type_: type[int], tokens: Sequence[Token]) -> int:
    """Raises ValueError for 1.5, which cyclopts rounds on its own."""
    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        raise ValueError(f'"{text}" is not a whole number') from None


Device = Literal["auto", "cpu", "cuda", "mps"]
Whole = Annotated[int, Parameter(converter=whole)]
AtLeastZero = Annotated[Whole, Parameter(validator=Number(gte=0))]
AtLeastOne = Annotated[Whole, Parameter(validator=Number(gte=1))]
# Without a `--no-` form, as off is the default.
Switch = Annotated[bool, Parameter(negative=(), show_default=False)]
Output = Annotated[Path, Parameter(alias="-o")]
flat = Parameter(name="*")
"""Makes a group's fields flags of the command itself: `--steps`, not `--training.steps`."""


@flat
@dataclass(frozen=True, kw_only=True)
class OpeningOptions:
    """How a model is opened."""

    autoencoder: Path | None = None
    "The VQ-f4 autoencoder of a published file; by default `autoencoder_vq_f4.pth` beside it."
    device: Device = "auto"
    "Where to compute."
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    "Precision; auto is the fastest without visible loss."


@flat
@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model runs: one in a file, or a one-step LoRA on its base."""

    model: str = "bundled"
    "`bundled`, or a TAD-SR, SinSR, ResShift x4 or own file."
    recipe: str = "auto"
    "tad-sr, sinsr, resshift or resshift-s4; with --base tsd-sr or tsd-sr-mse; auto: by the file's name."
    opening: OpeningOptions = field(default_factory=OpeningOptions)
    base: Path | None = None
    """For TSD-SR: Stable Diffusion 3 medium, a diffusers folder or a checkpoint file. For a LoRA trained here on 1.5,
    2.1 or SDXL: a diffusers folder of that model."""
    lora: Path | None = None
    "The folder of TSD-SR's LoRA or your own (two files), or a file from `convert`."
    embeddings: Path | None = None
    "TSD-SR's prompt embeddings: the folder of prompt_embeds.pt and pool_embeds.pt."
    prompt: str | None = None
    "Encode this text in place of TSD-SR's published prompt."
    offload: Switch = False
    "Keep the parts of TSD-SR that are not in use on the CPU."

    def choice(self) -> ModelChoice:
        from ..jobs.model_choice import ModelChoice

        return ModelChoice(
            model=self.model,
            autoencoder=self.opening.autoencoder,
            recipe=self.recipe,
            device=self.opening.device,
            dtype=self.opening.dtype,
            base=self.base,
            lora=self.lora,
            embeddings=self.embeddings,
            prompt=self.prompt,
            offload=self.offload,
        )
