"""Low-rank updates of weights (LoRA, arXiv 2106.09685) in peft's format: `<module>.lora_A|lora_B.weight`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..errors import UserError
from .weights_file import shortened

DOWN, UP, ALPHA = ".lora_A.weight", ".lora_B.weight", ".alpha"


@dataclass(frozen=True)
class LowRank:
    """One module's update: `down` (r, in, ...) and `up` (out, r, ...), for linear layers and convolutions.

    `alpha` is None if the file has none, which means alpha = r.
    """

    down: Tensor
    up: Tensor
    alpha: float | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def rows(self) -> int:
        """Number of the module's outputs that the update changes."""
        return self.up.shape[0]

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the update can be added to a weight of this shape (out, in, ...)."""
        return self.rows == shape[0] and self.down[0].numel() == prod(shape[1:])

    def delta(self) -> Tensor:
        """alpha / r * up @ down, (out, in * kernel) in float32."""
        return self.scale * (self.up.float().flatten(1) @ self.down.float().flatten(1))


Update = dict[str, LowRank]


@dataclass(frozen=True)
class Adapter:
    """A named LoRA and its strength: the weights become W + strength * alpha / r * B A.

    `trained` is a regular expression for the names of all modules that its method trains, so that a part of a LoRA can
    be told from a whole one; empty if the method does not say.
    """

    name: str
    update: Update
    strength: float = 1.0
    trained: str = ""


def named(*ends: str) -> str:
    """A regular expression for the full names of modules that end with one of these names."""
    return rf"(.+\.)?({'|'.join(map(re.escape, ends))})"


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors with a prefix in their names, which is removed."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def parse(tensors: Mapping[str, Tensor], name: str) -> Update:
    """The updates by module name; `name` is the file's name for messages.

    Raises UserError for names that are not a LoRA's, for a missing `down` or `up`, for ranks that differ, and for
    values that are not finite.
    """
    modules = {key.removesuffix(end) for key in tensors for end in (DOWN, UP, ALPHA) if key.endswith(end)}
    known = {module + end for module in modules for end in (DOWN, UP, ALPHA)}
    unknown = sorted(tensors.keys() - known)
    if unknown:
        raise UserError(f"{name} contains weights that are not a LoRA's ({shortened(unknown)}): choose another file.")
    missing = sorted(m + end for m in modules for end in (DOWN, UP) if m + end not in tensors)
    if missing:
        raise UserError(f"{name} is incomplete (it lacks {shortened(missing)}): download it again.")
    return {module: _layer(tensors, module, name) for module in sorted(modules)}


def _layer(tensors: Mapping[str, Tensor], module: str, name: str) -> LowRank:
    down, up, alpha = tensors[module + DOWN], tensors[module + UP], tensors.get(module + ALPHA)
    empty = not down.numel() or not up.numel()
    if empty or down.ndim < 2 or up.ndim < 2 or down.shape[0] != up.shape[1] or up[0, 0].numel() != 1:
        raise UserError(
            f"{name} is broken ({module} has matrices of shapes {tuple(down.shape)} and {tuple(up.shape)}, which do "
            "not belong together): download it again."
        )
    if alpha is not None and alpha.numel() != 1:
        raise UserError(f"{name} is broken ({module} has {alpha.numel()} values as its alpha): download it again.")
    if not all(torch.isfinite(part.float()).all() for part in (down, up, *([] if alpha is None else [alpha]))):
        raise UserError(f"{name} contains values that are not finite in {module}: download it again.")
    return LowRank(down, up, None if alpha is None else float(alpha))


def to_tensors(update: Update, prefix: str = "") -> dict[str, Tensor]:
    """The inverse of `parse`, with a prefix added to every name."""
    tensors = {}
    for module, layer in update.items():
        tensors[prefix + module + DOWN], tensors[prefix + module + UP] = layer.down, layer.up
        if layer.alpha is not None:
            tensors[prefix + module + ALPHA] = torch.tensor(layer.alpha)
    return tensors


def merge(weight: Tensor, layer: LowRank, strength: float = 1.0) -> Tensor:
    """The weight with the update added, computed in float32; a float32 weight itself changes. The update may change
    only the first rows."""
    merged = weight.float()
    merged[: layer.rows] += strength * layer.delta().to(weight.device).view(layer.rows, *weight.shape[1:])
    return merged.to(weight.dtype)
