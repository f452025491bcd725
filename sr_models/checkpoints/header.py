"""Read a weights file's header: names, shapes and metadata, without the values."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ..errors import UserError
from .scaled_fp8 import without_scales
from .weights_file import (
    WeightsFile,
    is_gguf,
    is_safetensors,
    open_safetensors,
    plain_names,
    read_torch,
    require_file,
)

FileKind = Literal["safetensors", "torch", "gguf"]


@dataclass(frozen=True)
class Header:
    """Names (as in `read_weights`) and shapes of a file's tensors, and its metadata; empty for GGUF.

    `refused`: why `read_weights` does not read the values, for a file that also contains objects of other programs.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str] = field(default_factory=dict)
    kind: FileKind = "safetensors"
    refused: str = ""

    @property
    def name(self) -> str:
        return self.path.name


def read_header(path: Path) -> Header:
    """Read a file's header. Raises UserError if the file is missing, empty, truncated or not a weights file."""
    require_file(path)
    if is_gguf(path):
        return Header(path, {}, kind="gguf")
    return _of_safetensors(path) if is_safetensors(path) else _of_torch(path)


def header_of(file: WeightsFile) -> Header:
    """The header of a file that is already open."""
    shapes = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
    kind = "safetensors" if is_safetensors(file.path) else "torch"
    return Header(file.path, without_scales(shapes), file.metadata, kind)


def _of_safetensors(path: Path) -> Header:
    with open_safetensors(path) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no iterator)
        return Header(path, without_scales(plain_names(shapes, path.name)), file.metadata() or {})


def _of_torch(path: Path) -> Header:
    try:
        return header_of(read_torch(path, "meta"))
    except UserError as error:
        with suppress(UserError):
            return replace(header_of(read_torch(path, "meta", foreign=True)), refused=str(error))
        raise
