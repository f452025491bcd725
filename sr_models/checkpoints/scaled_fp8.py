"""8-bit weights that carry a scale each: `<module>.weight` in float8 beside `<module>.scale_weight`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import UserError

WEIGHT = ".weight"
SCALES = (".scale_weight", ".weight_scale")
# For the activations, and what says that the file has scales.
UNUSED = (".scale_input", ".input_scale", ".comfy_quant")
MARK = "scaled_fp8"
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)

Value = TypeVar("Value")


def with_scales_applied(tensors: dict[str, Tensor], file_name: str) -> dict[str, Tensor]:
    """The weights times their scales, in bfloat16; the rest as it is. Files without scales are returned unchanged.

    Raises UserError for scales that do not fit, and for weights in other forms that need scales.
    """
    scales = _scales(tensors)
    if not scales:
        return tensors
    weights = {name.removesuffix(end) + WEIGHT: tensors[name] for name, end in scales.items()}
    kept = without_scales(tensors)
    return kept | {name: _scaled(kept.get(name), scale, name, file_name) for name, scale in weights.items()}


def without_scales(table: Mapping[str, Value]) -> dict[str, Value]:
    """The names that `with_scales_applied` keeps."""
    scales = _scales(table)
    dropped = {name for name in table if name in scales or name.endswith(UNUSED) or name.split(".")[-1] == MARK}
    return {name: value for name, value in table.items() if not scales or name not in dropped}


def _scales(names: Iterable[str]) -> dict[str, str]:
    return {name: end for name in names for end in SCALES if name.endswith(end)}


def _scaled(weight: Tensor | None, scale: Tensor, name: str, file_name: str) -> Tensor:
    if weight is None or weight.dtype not in FLOAT8:
        raise UserError(
            f"{file_name} is quantized in a form that cannot be read here ({name} has a scale and is not float8): "
            "choose the file in fp16 or bf16."
        )
    if scale.numel() not in (1, *weight.shape[:1]) or not torch.isfinite(scale.float()).all():
        raise UserError(f"{file_name} has a scale that does not fit {name}: download it again.")
    factor = scale.float().reshape(-1, *[1] * (weight.ndim - 1)) if weight.ndim else scale.float().reshape(())
    return (weight.float() * factor).bfloat16()
