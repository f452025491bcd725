"""Weights that a node is set to and that are missing: offered on the node, and fetched when the user asks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..sr_models.checkpoints.download import PublishedFile, download
from ..sr_models.errors import UserError
from ..sr_models.families.published import (
    AUTOENCODERS,
    FOLDERS,
    PUBLISHED,
    Weights,
    by_hand_sentence,
    licence_notice,
    size_of,
)
from . import host

ROUTE = "/onestep_sr/downloads"
AUTO = "auto"
MEGABYTE = 1e6


@dataclass(frozen=True)
class Missing:
    """A file on record that is not in its folder."""

    file: PublishedFile
    folder: Path

    @property
    def target(self) -> Path:
        return self.folder / self.file.name

    @property
    def text(self) -> str:
        return (
            f"{self.file.name} is missing ({size_of(self.file)}; {licence_notice(self.file.licence)}). "
            f"Download it from {self.file.url} into {self.folder}?"
        )


@dataclass
class Transfer:
    """A download that runs, or why the last one ended."""

    done: int = 0
    total: int = 0
    runs: bool = True
    is_cancelled: bool = False
    error: str = ""

    def report(self, done: int, total: int) -> None:
        if self.is_cancelled:
            raise UserError("The download was cancelled.")
        self.done, self.total = done, total

    @property
    def text(self) -> str:
        if self.is_cancelled:
            return "cancelling"
        return f"{self.done / MEGABYTE:,.0f} of {self.total / MEGABYTE:,.0f} MB" if self.total else "waiting"


@dataclass
class Downloads:
    """The downloads of a server, one at a time."""

    transfers: dict[Path, Transfer] = field(default_factory=dict)
    turn: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, content: Any) -> dict[str, Any]:
        """{widgets, start, cancel} of a node -> its missing files, after one was started or cancelled by its name.

        Only names on record count; addresses and folders are the server's own. Raises ValueError for other content.
        """
        widgets, start, cancel = _question(content)
        offers = {}
        for missing in missing_files(widgets):
            if missing.file.name == start:
                self._start(missing)
            transfer = self.transfers.get(missing.target)
            if transfer and missing.file.name == cancel:
                transfer.is_cancelled = True
            offers[missing.file.name] = _offer(missing, transfer)
        return {"files": list(offers.values()), "by_hand": list(by_hand(widgets))}

    def _start(self, missing: Missing) -> None:
        known = self.transfers.get(missing.target)
        if known is None or not known.runs:
            transfer = self.transfers[missing.target] = Transfer()
            threading.Thread(target=self._run, args=(missing, transfer), daemon=True).start()

    def _run(self, missing: Missing, transfer: Transfer) -> None:
        try:
            with self.turn:
                transfer.report(0, 0)
                found = download(missing.file, missing.folder, transfer.report, unchecked=True)
            logging.info("One-Step SR: %s (sha256 %s), %s", missing.target, found, missing.file.licence)
        except UserError as error:
            transfer.error = str(error)
        finally:
            transfer.runs = False


def add_route() -> None:
    host.add_route(ROUTE, Downloads().answer)


def missing_files(widgets: dict[str, str]) -> Iterator[Missing]:
    """The missing files that can be downloaded, of the weights that the widgets name."""
    for weights, folder in _chosen(widgets):
        for file in weights.files:
            is_replaced = file in AUTOENCODERS and widgets.get("autoencoder", AUTO) not in (AUTO, file.name)
            if not is_replaced and not (folder / file.name).exists():
                yield Missing(file, folder)


def by_hand(widgets: dict[str, str]) -> Iterator[str]:
    """A sentence for each of the named weights that are missing and that only a browser can download."""
    for weights, folder in _chosen(widgets):
        if weights.by_hand and not all((folder / name).exists() for name in weights.by_hand.names):
            yield by_hand_sentence(weights, in_comfyui=True)


def _chosen(widgets: dict[str, str]) -> Iterator[tuple[Weights, Path]]:
    """The weights on record that the widgets name, each with the folder where they are or belong."""
    values = {value.replace("\\", "/") for value in widgets.values()} - {file.name for file in AUTOENCODERS}
    for weights in PUBLISHED.values():
        names = sorted(values & set(weights.names))
        if names:
            yield weights, _folder(names, FOLDERS[weights.use])


def _folder(names: list[str], kind: str) -> Path:
    """The model folder that holds one of these files, else the first of its kind."""
    folders = host.model_folders(kind)
    return next((folder for folder in folders for name in names if (folder / name).exists()), folders[0])


def _offer(missing: Missing, transfer: Transfer | None) -> dict[str, Any]:
    runs = transfer is not None and transfer.runs
    text = f"{missing.file.name}: {transfer.text}" if transfer and runs else missing.text
    return {"name": missing.file.name, "text": text, "runs": runs, "error": transfer.error if transfer else ""}


def _question(content: Any) -> tuple[dict[str, str], str | None, str | None]:
    if not isinstance(content, dict) or not isinstance(content.get("widgets"), dict):
        raise ValueError("it must be an object with widgets")
    names = content.get("start"), content.get("cancel")
    if not all(name is None or isinstance(name, str) for name in names):
        raise ValueError("start and cancel must be texts")
    return {name: value for name, value in content["widgets"].items() if isinstance(value, str)}, *names
