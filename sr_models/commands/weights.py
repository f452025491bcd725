"""`onestep-sr models`, `download` and `convert`: which weights there are, fetching them, packing them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from .options import Output
from .terminal import byte_bar, say

if TYPE_CHECKING:
    from ..families.published import Weights


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
    """Download published weights, which have licences of their own. Without a name, list them.

    Nothing is downloaded without this command, or a click on Download in ComfyUI.
    """

    name: str | None = field(default=None, kw_only=False)
    "sinsr, hypir, osediff, ...; those that only a browser can get are named with their address."
    to: Path | None = None
    "The folder to put the files into."
    sha256: str | None = None
    "The hash that the first file must have; by default the one on record."
    hash: bool = True
    "Compare each file with a hash; --no-hash also accepts a file without a known one."

    def __call__(self) -> None:
        from ..families.published import by_hand_sentence, overview, weights_of

        if self.name is None:
            for line in overview():
                say(line)
            return
        weights = weights_of(self.name)
        if weights.by_hand:
            say(by_hand_sentence(weights))
        if weights.files:
            self._fetch(weights)

    def _fetch(self, weights: Weights) -> None:
        from ..checkpoints.download import download
        from ..families.published import about

        if self.to is None:
            raise UserError(f"Where to? Add --to FOLDER: in ComfyUI it is {weights.folder}.")
        for position, file in enumerate(weights.files):
            say(f"{about(file)}, from {file.url}")
            with byte_bar() as report:
                found = download(file, self.to, report, self.sha256 if position == 0 else None, not self.hash)
            target = self.to / file.name
            say(f"{target} ({target.stat().st_size / 1e6:,.0f} MB, sha256 {found})")
        say(f"Use with {weights.use}; ComfyUI finds it in {weights.folder}.")


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Put the files of a one-step LoRA (and the prompt embeddings if any), or AdcSR's two files, into one file."""

    lora: Path = field(kw_only=False)
    "A LoRA's file, such as pisa_sr.pkl, or its folder if it has two files; or AdcSR's net_params_200.pkl."
    output: Output
    "The .safetensors file to write."
    embeddings: Path | None = None
    "TSD-SR's prompt embeddings: the folder of prompt_embeds.pt and pool_embeds.pt."

    def __call__(self) -> None:
        from ..families.convert import convert

        say(f"{self.output} holds {convert(self.lora, self.output, self.embeddings)}")
