"""Reading weights files of unknown origin: safetensors, or torch files without any code in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import UserError
from .pickle_scan import shown
from .scaled_fp8 import with_scales_applied
from .torch_file import read_torch_file

SUFFIX = ".safetensors"
WRAPPER_KEYS = ("state_dict", "params_ema", "params", "model")
PREFIXES = re.compile(r"(^|[./])(?:(?:module|_orig_mod)\.)+")
GGUF_MAGIC = b"GGUF"
MAX_HEADER = 2**23  # 100,000 tensors; the largest published ones have 3,000
MAX_NAME, MAX_DIMENSIONS = 500, 8
SHOWN_KEYS = 5

Value = TypeVar("Value")


@dataclass(frozen=True)
class WeightsFile:
    """Names and tensors of one file, on the CPU and mapped from disk where the format allows."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    @property
    def name(self) -> str:
        return self.path.name


def read_weights(path: Path) -> WeightsFile:
    """Open a `.safetensors` file, or a torch file of any other suffix.

    A dictionary under `state_dict` and the like is unpacked; `module.` and `_orig_mod.` are dropped from names, and the
    scales of fp8 weights are applied. Raises UserError for a file that is missing, empty, cut short or not a weights
    file.
    """
    must_exist(path)
    if path.suffix.lower() != SUFFIX:
        return WeightsFile(path, _finished(_read_torch(path), path), {})
    with open_safetensors(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
        return WeightsFile(path, _finished(tensors, path), file.metadata() or {})


def _finished(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        if len(name) > MAX_NAME or not name.isprintable():
            raise UserError(f"{path.name} has a weight with an unreadable name ({shown(name)}): choose another file.")
        if tensor.ndim > MAX_DIMENSIONS or tensor.is_complex():
            kind = "complex" if tensor.is_complex() else f"{tensor.ndim}-dimensional"
            raise UserError(f"{path.name} has a {kind} weight ({shown(name)}), as no model here: choose another file.")
    return with_scales_applied(without_prefixes(tensors), path.name)


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """safetensors' `safe_open`. Raises UserError for a file that is not one, also where that shows in its use."""
    _refuse_gguf(path)
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if MAX_HEADER < header < path.stat().st_size:
        raise UserError(
            f"{path.name} has a header of {header:,} bytes, which weights do not need: choose another file."
        )
    try:
        with safe_open(path, framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise broken_safetensors(path, error) from error


def _refuse_gguf(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(GGUF_MAGIC)) == GGUF_MAGIC:
            raise UserError(
                f"{path.name} is a GGUF file, which holds a quantized model that cannot be read here: choose the model "
                "as safetensors."
            )


def broken_safetensors(path: Path, error: Exception) -> UserError:
    reason = shown(str(error))
    return UserError(f"{path.name} is cut short or not a safetensors file ({reason}): download it again.")


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says about itself, without its tensors; nothing for other formats."""
    must_exist(path)
    if path.suffix.lower() != SUFFIX:
        return {}
    with open_safetensors(path) as file:
        return file.metadata() or {}


def read_tensor(path: Path) -> Tensor:
    """A `.pt` file that holds one tensor. Raises UserError for any other."""
    must_exist(path)
    content = read_torch_file(path)
    if not isinstance(content, Tensor):
        raise UserError(f"{path.name} does not hold a single tensor: choose another file.")
    return content


def must_exist(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path} does not exist: check the name, or copy the weights file to that place.")
    if path.stat().st_size == 0:
        raise UserError(f"{path.name} is empty (0 bytes): download it again.")


def _read_torch(path: Path) -> dict[str, Tensor]:
    _refuse_gguf(path)
    content = read_torch_file(path)
    for key in WRAPPER_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise UserError(f"{path.name} does not hold a table of weights: choose a checkpoint file.")
    return tensors


def without_prefixes(table: dict[str, Value]) -> dict[str, Value]:
    """Without what trainers put into names; unchanged where two names would become one."""
    shorter = {PREFIXES.sub(r"\1", name): value for name, value in table.items()}
    return shorter if len(shorter) == len(table) else table


def mismatches(file: WeightsFile, network: nn.Module) -> list[str]:
    """Why the file does not fit the network, a phrase per kind; empty where it does. Buffers may be absent."""
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    optional = {name for name, _ in network.named_buffers()}
    found = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
    kinds = {
        "lacks": sorted(expected.keys() - found.keys() - optional),
        "has unknown": sorted(found.keys() - expected.keys()),
        "has another shape for": sorted(
            f"{name} {found[name]} for {expected[name]}"
            for name in expected.keys() & found.keys()
            if found[name] != expected[name]
        ),
    }
    return [f"{kind} {len(names)} weights ({shortened(names)})" for kind, names in kinds.items() if names]


def shortened(names: list[str]) -> str:
    """The first few names, for a sentence."""
    return ", ".join(shown(name) for name in names[:SHOWN_KEYS]) + (", ..." if len(names) > SHOWN_KEYS else "")


def fill(network: nn.Module, file: WeightsFile, title: str, dtype: torch.dtype) -> nn.Module:
    """Give a network built on the meta device the file's weights in `dtype`, without a second copy.

    Raises UserError for names or shapes that differ, or weights that are not finite.
    """
    reasons = mismatches(file, network)
    if reasons:
        raise UserError(
            f"{file.name} is not a complete {title} checkpoint (it {'; it '.join(reasons)}): "
            "download it again or choose another file."
        )
    broken = [n for n, t in file.tensors.items() if t.is_floating_point() and not _finite(t)]
    if broken:
        raise UserError(f"{file.name} holds values that are not finite in {shortened(broken)}: download it again.")
    weights = {name for name, _ in network.named_parameters()}
    learned = {name: file.tensors[name].to(dtype) for name in weights}
    network.load_state_dict(learned, strict=False, assign=True)
    return network.requires_grad_(False).eval()


def _finite(tensor: Tensor) -> bool:
    readable = tensor.half() if tensor.dtype.itemsize == 1 else tensor  # torch does not ask float8
    return bool(torch.isfinite(readable).all())
