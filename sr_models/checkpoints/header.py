"""Read a weights file's header: names, shapes and metadata, without the values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

from .weights_file import WeightsFile, broken_safetensors, must_exist, read_torch, without_prefixes

FileKind = Literal["safetensors", "torch", "gguf"]
GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True)
class Header:
    """Names (as in `read_weights`) and shapes of a file's tensors, and its metadata; empty for GGUF."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str] = field(default_factory=dict)
    kind: FileKind = "safetensors"

    @property
    def name(self) -> str:
        return self.path.name


def read_header(path: Path) -> Header:
    """Read a file's header. Raises UserError if the file is missing, empty, truncated or not a weights file."""
    must_exist(path)
    with path.open("rb") as file:
        if file.read(len(GGUF_MAGIC)) == GGUF_MAGIC:
            return Header(path, {}, kind="gguf")
    if path.suffix == ".safetensors":
        return _of_safetensors(path)
    return header_of(read_torch(path, "meta"))


def header_of(file: WeightsFile) -> Header:
    """The header of a file that is already open."""
    shapes = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
    return Header(file.path, shapes, file.metadata, "safetensors" if file.path.suffix == ".safetensors" else "torch")


def _of_safetensors(path: Path) -> Header:
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            return Header(path, without_prefixes(shapes), file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise broken_safetensors(path, error) from error
