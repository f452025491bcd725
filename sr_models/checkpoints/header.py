"""What a weights file says about itself: names, shapes and metadata, read without its values."""

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
    """Names and shapes of a file's tensors under the names that `read_weights` gives them; none for GGUF."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str] = field(default_factory=dict)
    kind: FileKind = "safetensors"

    @property
    def name(self) -> str:
        return self.path.name


def read_header(path: Path) -> Header:
    """Raises UserError for a file that is missing, empty, cut short or not a weights file."""
    must_exist(path)
    with path.open("rb") as file:
        if file.read(len(GGUF_MAGIC)) == GGUF_MAGIC:
            return Header(path, {}, kind="gguf")
    if path.suffix == ".safetensors":
        return _of_safetensors(path)
    return header_of(read_torch(path, "meta"))


def header_of(file: WeightsFile) -> Header:
    """Of a file that is open already."""
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
