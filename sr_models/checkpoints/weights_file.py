"""Reading weights files of unknown origin: safetensors, or torch files without any code in them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import UserError
from .pickle_scan import shown
from .scaled_fp8 import with_scales_applied
from .torch_file import read_torch_file

SAFETENSORS = ".safetensors"
SUFFIXES = (SAFETENSORS, ".pth", ".pt", ".ckpt", ".pkl")
WRAPPER_KEYS = ("state_dict", "params_ema", "params", "model")
PREFIXES = re.compile(r"(^|[./])(?:(?:module|_orig_mod)\.)+")
GGUF_MAGIC = b"GGUF"
MAX_HEADER = 2**23  # 100,000 tensors; the largest published ones have 3,000
MAX_NAME, MAX_DIMENSIONS, MAX_LISTED = 500, 8, 1000
SHOWN_KEYS = 5
BEGINNING = 256
# What is saved under a weights file's name by mistake, by its first bytes.
MISTAKEN = (
    (
        rb"version https://git-lfs",
        "a Git LFS pointer, which only stands for the file: download the file itself, or run git lfs pull",
    ),
    (rb"\s*<(!doctype|html|head|body|\?xml)", "a web page: download the file itself, in a browser if it needs a login"),
    (rb"7z\xbc\xaf|Rar!|\x1f\x8b", "an archive: choose the file in it after unpacking"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP", "a picture: choose a weights file"),
    (rb"(?!GGUF)[\t\n\r -~]+\Z", "a text: download the file again"),
)

Value = TypeVar("Value")
Stamp = tuple[str, int, int]


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

    A dictionary under `state_dict` and the like is unpacked, tables inside a table get names with `/` between, and
    what is neither table nor tensor becomes metadata. `module.` and `_orig_mod.` are dropped from names, and the scales
    of fp8 weights are applied. Nothing in the file is executed.

    Raises UserError for a file that is missing, empty, cut short or not a weights file.
    """
    require_file(path)
    refuse_gguf(path)
    file = _read_safetensors(path) if is_safetensors(path) else read_torch(path)
    for name, tensor in file.tensors.items():
        if tensor.ndim > MAX_DIMENSIONS or tensor.is_complex():
            kind = "complex" if tensor.is_complex() else f"{tensor.ndim}-dimensional"
            raise UserError(f"{path.name} has a {kind} weight ({shown(name)}), as no model here: choose another file.")
    return replace(file, tensors=with_scales_applied(file.tensors, path.name))


def _read_safetensors(path: Path) -> WeightsFile:
    with open_safetensors(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
        return WeightsFile(path, plain_names(tensors, path.name), file.metadata() or {})


def is_safetensors(path: Path) -> bool:
    return path.suffix.lower() == SAFETENSORS


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """safetensors' `safe_open`. Raises UserError for a file that is not one, also where that shows in its use."""
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
        reason = shown(str(error))
        raise UserError(f"{path.name} is cut short or not a safetensors file ({reason}): download it again.") from error


def is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC


def refuse_gguf(path: Path) -> None:
    if is_gguf(path):
        raise UserError(
            f"{path.name} is a GGUF file, which holds a quantized model that cannot be read here: choose the model "
            "as safetensors."
        )


def read_tensor(path: Path) -> Tensor:
    """A `.pt` file that holds one tensor. Raises UserError for any other."""
    require_file(path)
    content = read_torch_file(path)
    if not isinstance(content, Tensor):
        raise UserError(f"{path.name} does not hold a single tensor: choose another file.")
    return content


def file_stamps(paths: Iterable[Path]) -> tuple[Stamp, ...]:
    """Path, modification time and size of each file, which tell whether it was replaced; zeros for a missing file."""
    return tuple(_stamp(path) for path in paths)


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:
        return str(path), 0, 0
    return str(path), status.st_mtime_ns, status.st_size


def require_file(path: Path) -> None:
    """Raise UserError for a file that is missing or empty, a folder or device, and for what is plainly not weights."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: choose a weights file (a diffusers folder only serves as --base).")
    if not os.path.lexists(path):
        raise UserError(f"{path} does not exist: check the name, or copy the weights file to that place.")
    if not path.is_file():
        what = "a link that leads to no file" if path.is_symlink() else "not a file"
        raise UserError(f"{path} is {what}: choose a weights file.")
    if path.stat().st_size == 0:
        raise UserError(f"{path.name} is empty (0 bytes): download it again.")
    with path.open("rb") as file:
        beginning = file.read(BEGINNING)
    for pattern, what in MISTAKEN:
        if re.match(pattern, beginning, re.IGNORECASE | re.DOTALL):
            raise UserError(f"{path.name} is not a weights file but {what}.")


def beside(path: Path, name: str) -> Path:
    """The file with this name in the same folder; its case need not agree if no file has exactly this name."""
    exact = path.with_name(name)
    if exact.exists() or not path.parent.is_dir():
        return exact
    alike = sorted(each for each in path.parent.iterdir() if each.name.lower() == name.lower())
    return alike[0] if alike else exact


def read_torch(path: Path, device: str = "cpu", foreign: bool = False) -> WeightsFile:
    """A torch file; on the device `meta` its tensors have shapes and no values. `foreign` is as in `read_torch_file`.
    Raises UserError as `read_weights`."""
    content = read_torch_file(path, device, foreign)
    if isinstance(content, Tensor):
        raise UserError(
            f"{path.name} does not hold a table of weights but one tensor of shape {tuple(content.shape)}: choose a "
            "checkpoint file (prompt embeddings are for One-Step SR Prompt, or for --embeddings)."
        )
    for key in WRAPPER_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    leaves = dict(_leaves(content, path.name)) if isinstance(content, dict) else {}
    tensors = {name: value for name, value in leaves.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path.name} does not hold a table of weights: choose a checkpoint file.")
    metadata = {name: _as_text(value) for name, value in leaves.items() if name not in tensors}
    return WeightsFile(path, plain_names(tensors, path.name), metadata)


def _leaves(table: Mapping[Any, Any], file_name: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What is in a table and the tables in it, by names with `/` between."""
    for key, value in table.items():
        name = f"{prefix}{key}"
        _require_readable(name, file_name)  # before they add up
        if isinstance(value, dict):
            yield from _leaves(value, file_name, f"{name}/")
        else:
            yield name, value


def _as_text(value: Any) -> str:
    """Strings and numbers, and lists of a few of them; of others the type's name."""
    if isinstance(value, str):
        return value
    short = not isinstance(value, list | tuple) or (
        len(value) <= MAX_LISTED
        and all(isinstance(entry, int | float) or len(str(entry)) <= MAX_NAME for entry in value)
    )
    return json.dumps(value if short else type(value).__name__, default=lambda other: type(other).__name__)


def plain_names(table: dict[str, Value], file_name: str) -> dict[str, Value]:
    """The table `without_prefixes`. Raises UserError for names that no sentence can show."""
    for name in table:
        _require_readable(name, file_name)
    return without_prefixes(table)


def _require_readable(name: str, file_name: str) -> None:
    if len(name) > MAX_NAME or not name.isprintable():
        raise UserError(f"{file_name} has a weight with an unreadable name ({shown(name)}): choose another file.")


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
