"""`onestep-sr models`, `download` and `convert`: which weights there are, fetching them, packing them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import UserError
from .options import Output
from .terminal import byte_bar, say


@dataclass(frozen=True)
class Models:
    """List the models and recipes that can run."""

    folder: Path | None = None
    "Also say what each file in this folder is."

    def __call__(self) -> None:
        from ..families.loading import identify
        from ..families.one_step_lora import TSD_FAMILY
        from ..families.resshift import RESSHIFT_FAMILY

        say("bundled      the small x4 model of this project, nothing to download")
        for recipe in RESSHIFT_FAMILY.values():
            say(f"{recipe.name:12} {recipe.title}, x{recipe.scale}, from a published file ({recipe.citation})")
        for recipe in TSD_FAMILY.values():
            say(f"{recipe.name:12} {recipe.title}, any scale, with --base and --lora ({recipe.citation})")
        if self.folder is not None and not self.folder.is_dir():
            raise UserError(f"{self.folder} is not a folder: choose a folder that contains weights files.")
        for file in sorted(self.folder.iterdir()) if self.folder else ():
            if file.suffix in (".safetensors", ".pth", ".pt", ".ckpt"):
                say(f"{file.name}: {identify(file)}")


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
    "The hash that the first file must have; by default the publisher's, where there is one."

    def __call__(self) -> None:
        from ..checkpoints.download import download
        from ..families.published import files_of

        for position, file in enumerate(files_of(self.name)):
            say(f"{file.name}, {file.licence}, from {file.url}")
            with byte_bar() as report:
                found = download(file, self.to, report, self.sha256 if position == 0 else None)
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
        from ..checkpoints import prompt_embeddings
        from ..families import one_step_lora

        if self.output.suffix != ".safetensors":
            raise UserError(f"{self.output} does not end in .safetensors: choose another name.")
        if not self.output.parent.is_dir():
            raise UserError(f"{self.output.parent} is not a folder: create it first.")
        weights = one_step_lora.read(self.lora)
        if self.embeddings is not None:
            if weights.unet:
                raise UserError(f"{weights.base} encodes the prompt with its own CLIP: leave --embeddings out.")
            weights = replace(weights, embeddings=prompt_embeddings.read_embeddings(self.embeddings))
        one_step_lora.save(self.output, weights)
        say(f"{self.output} holds {one_step_lora.summary(weights)}")
