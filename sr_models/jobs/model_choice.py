"""Which model to run, as plain settings that can travel to another machine, and opening it there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from warnings import warn

import torch

from ..core.devices import default_dtype, find_device
from ..core.report import Notice
from ..diffusers_host.lora import open_lora
from ..errors import UserError
from ..families.bundled import BUNDLED
from ..families.family import OpenedModel
from ..families.loading import load
from ..families.registry import files_with, identify, read_lora

BUNDLED_NAME = "bundled"
CHUNK, PARTS = 2**20, 1024  # bytes that are hashed at once; a file of up to a gigabyte is hashed whole
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class ModelChoice:
    """The command line's options; see its help. `auto` and None leave the choice to the family.

    `spill` is the folder for temporary files of the autoencoder.
    """

    model: str = BUNDLED_NAME
    autoencoder: Path | None = None
    recipe: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    base: Path | None = None
    lora: Path | None = None
    embeddings: Path | None = None
    prompt: str | None = None
    offload: bool = False
    spill: Path | None = None
    strengths: Mapping[str, float] = field(default_factory=dict)
    tagger: Path | None = None
    captions: bool = False
    compile: bool = False

    def fingerprint(self) -> str:
        """Of everything that decides which model it is, by the content of its files, including those that a LoRA finds
        beside its own. Empty for a file that is missing, which opening the model will report."""
        chosen = BUNDLED if self.model == BUNDLED_NAME and self.lora is None else Path(self.model)
        paths = (chosen, self.autoencoder, self.base, self.lora, self.embeddings)
        paths += () if self.tagger is None else (self.tagger,)
        paths += () if self.lora is None or self.lora.is_dir() else _partners(self.lora)
        digest = hashlib.sha256(repr((self.recipe, self.prompt, *sorted(self.strengths.items()))).encode())
        for path in paths:
            digest.update(b"-" if path is None else _content(path))
        return digest.hexdigest()


def _partners(lora: Path) -> tuple[Path, ...]:
    """The other files of a LoRA with several."""
    own = lora.absolute()
    return tuple(file for file in files_with(own) if file != own and file.is_file())


def _content(path: Path) -> bytes:
    """A hash of a weights file, or of all files in a folder; of what is over a gigabyte, of parts all over it."""
    files = sorted(each for each in (path.rglob("*") if path.is_dir() else [path]) if each.is_file())
    digest = hashlib.sha256()
    for file in files:
        with suppress(OSError), file.open("rb") as content:
            size = file.stat().st_size
            digest.update(repr((file.name, size)).encode())
            for start in range(0, size, max(CHUNK, size // PARTS)):
                content.seek(start)
                digest.update(content.read(CHUNK))
    return digest.digest()


def _refuse_lora_options(choice: ModelChoice) -> None:
    options = {"--embeddings": choice.embeddings, "--prompt": choice.prompt, "--offload": choice.offload or None}
    options |= {"--strength": choice.strengths or None, "--tagger": choice.tagger}
    options |= {"--captions": choice.captions or None}
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UserError(f"Only one-step LoRAs take {' and '.join(given)}: give --base and --lora, or leave it out.")


def open_model(choice: ModelChoice, notice: Notice = warn) -> OpenedModel:
    """The model on its device. `notice` is called with a sentence if it cannot be compiled. Raises UserError as the
    loaders do."""
    opened = _opened(choice)
    return opened.compiled(notice) if choice.compile else opened


def _opened(choice: ModelChoice) -> OpenedModel:
    place = find_device(choice.device)
    dtype = default_dtype(place) if choice.dtype == "auto" else DTYPES[choice.dtype]
    recipe = None if choice.recipe == "auto" else choice.recipe
    if choice.base is None and choice.lora is None:
        _refuse_lora_options(choice)
        path = BUNDLED if choice.model == BUNDLED_NAME else Path(choice.model)
        if recipe is not None:
            identify(path).recipe(recipe)  # also refused where the model has none to choose from
        return load(path, autoencoder=choice.autoencoder, recipe=recipe, dtype=dtype, spill=choice.spill).to(place)
    if choice.base is None or choice.lora is None:
        raise UserError(
            "A LoRA needs both --base (Stable Diffusion 3 medium for TSD-SR, SD-Turbo for S3Diff and InvSR, 2.1-base "
            "for PiSA-SR and others) and --lora: give both."
        )
    if not choice.base.exists():
        raise UserError(f"{choice.base} does not exist: check the name of the base.")
    return open_lora(
        choice.base,
        read_lora(choice.lora).at(choice.strengths).with_tagger(choice.tagger).with_captions(choice.captions),
        embeddings=choice.embeddings,
        prompt=choice.prompt,
        recipe=recipe,
        dtype=dtype,
        device=place,
        offload=choice.offload,
        spill=choice.spill,
    )
