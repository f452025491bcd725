"""Open the parts of a diffusers folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

# `diffusion_pytorch_model.fp16.safetensors`; large ones are in pieces, numbered before or after the variant's name.
PIECE = r"(?:-\d+-of-\d+)?"
WEIGHTS = re.compile(rf"(?:diffusion_pytorch_model|pytorch_model|model){PIECE}(?:\.(\w+))?{PIECE}\.(?:safetensors|bin)")
PREFERRED = "fp16"


def variant_of(part: Path) -> str | None:
    """The variant of the weights in a part's folder, such as `fp16`; None if the folder has weights without one."""
    names = [path.name for path in part.iterdir()] if part.is_dir() else []
    found = {match[1] for name in names if (match := WEIGHTS.fullmatch(name))}
    if not found or None in found:
        return None
    return PREFERRED if PREFERRED in found else min(found)


def open_part(kind: Any, base: Path, part: str, dtype: torch.dtype) -> Any:
    """A network of a diffusers folder in `dtype`; `kind` is its class, of diffusers or transformers.

    Many people have only the variant of some part, such as fp16. Raises what `kind.from_pretrained` does.
    """
    return kind.from_pretrained(str(base), subfolder=part, torch_dtype=dtype, variant=variant_of(base / part))
