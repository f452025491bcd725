"""LoRAs in the names that peft gives a diffusers network: `<module>.lora_A|lora_B.<adapter>.weight`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor

from ..checkpoints import low_rank
from ..checkpoints.low_rank import Update
from ..checkpoints.metadata import read_json
from ..checkpoints.weights_file import WeightsFile, shortened
from ..errors import UserError

ALPHA = 8.0  # peft's default, with which files were trained that state none
_HALF = re.compile(r"(?P<half>.+\.lora_[AB])\.(?P<adapter>[^.]+)\.weight")


def by_adapter(tensors: Mapping[str, Tensor], name: str, alpha: float | None = ALPHA) -> dict[str, Update]:
    """The updates by adapter name, then by module. `name` is the file's name for messages, and `alpha` is for layers
    that state none; None means alpha = r.

    Raises UserError as `low_rank.parse`, and for names that are not of this form.
    """
    found: dict[str, dict[str, Tensor]] = {}
    matches = {key: _HALF.fullmatch(key) for key in tensors}
    unknown = sorted(key for key, match in matches.items() if match is None)
    if unknown:
        raise UserError(f"{name} contains weights that are not a LoRA's ({shortened(unknown)}): choose another file.")
    for key, match in matches.items():
        if match is not None:
            found.setdefault(match["adapter"], {})[f"{match['half']}.weight"] = tensors[key]
    return {adapter: _with_alpha(low_rank.parse(halves, name), alpha) for adapter, halves in found.items()}


def joined(updates: Mapping[str, Update], adapters: Iterable[str], file: WeightsFile, lists: Iterable[str]) -> Update:
    """Several adapters as one update: they change different modules, which the file also lists under `lists`.

    Raises UserError if two adapters change the same module, or if a listed module has no weights.
    """
    update: Update = {}
    for adapter in adapters:
        twice = sorted(update.keys() & updates.get(adapter, {}).keys())
        if twice:
            raise UserError(f"{file.name} is broken (it changes {shortened(twice)} twice): download it again.")
        update |= updates.get(adapter, {})
    listed = {module for key in lists for module in _modules(file, key)}
    missing = sorted(listed - update.keys())
    if missing or not update:
        what = f"{len(missing)} modules that it lists ({shortened(missing)})" if missing else "its LoRA"
        raise UserError(f"{file.name} is incomplete (it lacks {what}): download it again.")
    return update


def unlisted(file: WeightsFile, lists: Iterable[str], trained: str) -> str:
    """`Adapter.trained` for a file that may have lists of its modules: `trained` if it has none of them."""
    return "" if any(_modules(file, key) for key in lists) else trained


def _modules(file: WeightsFile, key: str) -> list[str]:
    """The modules that the file lists under a key; none if it has no such list."""
    listed = read_json(file.metadata.get(key, "[]"), file.name)
    return [module for module in listed if isinstance(module, str)] if isinstance(listed, list) else []


def _with_alpha(update: Update, alpha: float | None) -> Update:
    return {
        module: layer if layer.alpha is not None else replace(layer, alpha=alpha) for module, layer in update.items()
    }
