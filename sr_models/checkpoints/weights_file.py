"""Reading weights files of unknown origin: safetensors, or torch files without any code in them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import UserError

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".pkl")
WRAPPER_KEYS = ("state_dict", "params_ema", "params", "model")
PREFIXES = ("module.", "_orig_mod.")
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

    A dictionary under `state_dict` and the like is unpacked, tables inside a table get names with `/` between, and
    what is neither table nor tensor becomes metadata. `module.` and `_orig_mod.` before every name are dropped.
    Raises UserError for a file that is missing, empty, cut short or not a weights file.
    """
    must_exist(path)
    if path.suffix != ".safetensors":
        return read_torch(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
            return WeightsFile(path, without_prefixes(tensors), file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise broken_safetensors(path, error) from error


def broken_safetensors(path: Path, error: Exception) -> UserError:
    return UserError(f"{path.name} is cut short or not a safetensors file ({error}): download it again.")


def read_tensor(path: Path) -> Tensor:
    """A `.pt` file that holds one tensor. Raises UserError for any other."""
    must_exist(path)
    content = _load_torch(path)
    if not isinstance(content, Tensor):
        raise UserError(f"{path.name} does not hold a single tensor: choose another file.")
    return content


def must_exist(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path} does not exist: check the name, or copy the weights file to that place.")
    if path.stat().st_size == 0:
        raise UserError(f"{path.name} is empty (0 bytes): download it again.")


def _load_torch(path: Path, device: str = "cpu") -> object:
    try:
        # as a string: torch 2.1 maps no file that is named by a Path
        content = torch.load(str(path), map_location=device, weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path.name} is not a weights file, or holds more than weights, which could run code: get it as "
            "safetensors."
        ) from error
    except Exception as error:  # on broken bytes torch.load raises what its parser trips over, of any kind
        raise UserError(f"{path.name} is cut short or not a torch file: download it again.") from error
    if content is None:  # Automatic1111 puts a check of its own before torch.load, which refuses some newer files so
        raise UserError(f"{path.name} is empty, or the host's own check refused it: get it as safetensors.")
    return content


def read_torch(path: Path, device: str = "cpu") -> WeightsFile:
    """A torch file; on the device `meta` its tensors have shapes and no values. Raises UserError as `read_weights`."""
    content = _load_torch(path, device)
    for key in WRAPPER_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    leaves = dict(_leaves(content)) if isinstance(content, dict) else {}
    tensors = {name: value for name, value in leaves.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path.name} does not hold a table of weights: choose a checkpoint file.")
    metadata = {name: _as_text(value) for name, value in leaves.items() if name not in tensors}
    return WeightsFile(path, without_prefixes(tensors), metadata)


def _leaves(table: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """What is in a table and the tables in it, by names with `/` between."""
    found = []
    for key, value in table.items():
        name = f"{prefix}{key}"
        found += _leaves(value, f"{name}/") if isinstance(value, dict) else [(name, value)]
    return found


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=lambda other: type(other).__name__)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def without_prefixes(table: dict[str, Value]) -> dict[str, Value]:
    """Without what trainers put before every name."""
    for prefix in PREFIXES * 2:
        if table and all(name.startswith(prefix) for name in table):
            table = {name.removeprefix(prefix): value for name, value in table.items()}
    return table


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
    return ", ".join(names[:SHOWN_KEYS]) + (", ..." if len(names) > SHOWN_KEYS else "")


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
    broken = [n for n, t in file.tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if broken:
        raise UserError(f"{file.name} holds values that are not finite in {shortened(broken)}: download it again.")
    weights = {name for name, _ in network.named_parameters()}
    learned = {name: file.tensors[name].to(dtype) for name in weights}
    network.load_state_dict(learned, strict=False, assign=True)
    return network.requires_grad_(False).eval()
