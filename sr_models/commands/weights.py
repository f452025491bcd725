"""`onestep-sr models`, `download` and `convert`: which weights there are, fetching them, packing them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .options import Output
from .terminal import byte_bar, say


@dataclass(frozen=True)
class Models:
    """List the models and recipes that can run."""

    folder: Path | None = None
    "Also say what each file in this folder is."

    def __call__(self) -> None:
        from ..families.catalogue import files_in, recipes

        for line in (*recipes(), *(files_in(self.folder) if self.folder else ())):
            say(line)


@dataclass(frozen=True, kw_only=True)
class Download:
    """Download published weights, which have licences of their own.

    Nothing is downloaded without this command.
    """

    name: str = field(kw_only=False)
    "sinsr, resshift, resshift-s4 or sd3-medium."
    to: Path
    "The folder to put the files into."
    sha256: str | None = None
    "The hash that the first file must have; by default the one on record."
    hash: bool = True
    "Compare each file with a hash; --no-hash also accepts a file without a known one."

    def __call__(self) -> None:
        from ..checkpoints.download import download
        from ..families.published import files_of

        for position, file in enumerate(files_of(self.name)):
            say(f"{file.name}, {file.licence}, from {file.url}")
            with byte_bar() as report:
                found = download(file, self.to, report, self.sha256 if position == 0 else None, not self.hash)
            say(f"{self.to / file.name} (sha256 {found})")


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Put the two files of a one-step LoRA, and the prompt embeddings if any, into one file."""

    lora: Path = field(kw_only=False)
    "The folder of TSD-SR's LoRA or your own, or one of its two files."
    output: Output
    "The .safetensors file to write."
    embeddings: Path | None = None
    "TSD-SR's prompt embeddings: the folder of prompt_embeds.pt and pool_embeds.pt."

    def __call__(self) -> None:
        from ..families.convert import convert

        say(f"{self.output} holds {convert(self.lora, self.output, self.embeddings)}")
