"""Options that several commands share. A dataclass here becomes a group of flags in each command that contains it.

A field is a flag, its type defines the flag's values, and the text under it is the flag's help. Fields that are not
`kw_only` can be given without their name. Slow imports happen only when a command runs, so that `--help` is fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

from cyclopts import Parameter, Token
from cyclopts.validators import Number

from ..errors import UserError

if TYPE_CHECKING:
    from ..canvas.target import SideKind, Target
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


def place(type_: type[Path], tokens: Sequence[Token]) -> Path:
    """The converter for paths of folders and files to write. Raises ValueError for an empty text, which would mean the
    current folder."""
    if not tokens[0].value:
        raise ValueError("it is empty")
    return Path(tokens[0].value)


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
Place = Annotated[Path, Parameter(converter=place)]
Output = Annotated[Path, Parameter(alias="-o", converter=place)]
flat = Parameter(name="*")
"""Makes a group's fields flags of the command: `--steps`, not `--training.steps`."""


@flat
@dataclass(frozen=True, kw_only=True)
class SizeOptions:
    """How large the results are: one of these. A picture that is larger than the size to reach is shrunk."""

    scale: Annotated[float | None, Parameter(show_default="4.0")] = None
    "Output side over input side, 1 to 8."
    longest: AtLeastOne | None = None
    "Length of the longest side in px, in place of --scale."
    shortest: AtLeastOne | None = None
    "Length of the shortest side in px."
    width: AtLeastOne | None = None
    "Width in px."
    height: AtLeastOne | None = None
    "Height in px."
    megapixels: Annotated[float | None, Parameter(validator=Number(gt=0))] = None
    "Million pixels."
    fit: str | None = None
    "The largest size that fits 1080p, 1440p, 4k, 8k or WIDTHxHEIGHT, turned like the picture."

    def target(self) -> Target | None:
        """The size to reach; None for the scale. Raises UserError for a scale out of bounds, and for several sizes."""
        from ..canvas.target import Box, Factor, Megapixels, Side

        names = ("scale", "longest", "shortest", "width", "height", "megapixels", "fit")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            flags = " and ".join(f"--{name}" for name in given)
            raise UserError(f"Only one size can be reached: give one of {flags}.")
        if self.scale is not None:
            Factor(self.scale).factor(1, 1)
            return None
        if self.megapixels is not None:
            return Megapixels(self.megapixels)
        if self.fit is not None:
            return Box.parse(self.fit)
        return Side(cast("SideKind", given[0]), getattr(self, given[0])) if given else None


@flat
@dataclass(frozen=True, kw_only=True)
class OpeningOptions:
    """How a model is opened."""

    autoencoder: Path | None = None
    "The autoencoder of a published file; by default the one with its published name in the same folder."
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
    "tad-sr, sinsr, resshift, resshift-s4, resshift-ddim or resshift-s4-ddim; with --base, of the LoRA; auto: by file."
    opening: OpeningOptions = field(default_factory=OpeningOptions)
    base: Path | None = None
    """A diffusers folder, or a checkpoint file of Stable Diffusion 3 or 2.1. For TSD-SR: Stable Diffusion 3 medium. For
    PiSA-SR and others: 2.1-base. For S3Diff and InvSR: SD-Turbo. For your own LoRA: the one that it was trained on."""
    lora: Path | None = None
    """The LoRA's file, such as pisa_sr.pkl, its folder if it has two files (TSD-SR, GDPO-SR, S3Diff, your own and
    others), or a file from `convert`."""
    embeddings: Path | None = None
    "TSD-SR's prompt embeddings: the folder with prompt_embeds.pt and pool_embeds.pt."
    prompt: str | None = None
    "Encode this text instead of the prompt that the LoRA was published with."
    captions: Switch = False
    "Encode the text next to each picture, photo.txt for photo.jpg, as its prompt; without one, the usual prompt."
    tagger: Path | None = None
    """The folder with RAM's files, ram_swin_large_14m.pth, DAPE.pth and ram_tag_list.txt: puts tags of each picture
    into the prompt of OSEDiff and GDPO-SR; TAD-SeeSR needs it."""
    strength: Annotated[dict[str, float], Parameter(show_default=False)] = field(default_factory=dict)
    """Strength of a part of the LoRA, 1 if not given: for PiSA-SR --strength.pixel (fidelity) and --strength.semantic
    (detail), 0 to 2; for others --strength.unet or --strength.transformer, and --strength.vae."""
    offload: Switch = False
    "Keep parts of the model on the CPU while they are not in use."
    compile: Switch = False
    """Compile the network with torch.compile, on CUDA with CUDA graphs: the first tile of each size takes up to
    minutes, further ones less time. Without a compiler the network runs as usual."""

    def choice(self) -> ModelChoice:
        from ..jobs.model_choice import ModelChoice

        settings = asdict(self)
        return ModelChoice(**settings.pop("opening"), strengths=settings.pop("strength"), **settings)
