"""Schema features that only newer ComfyUI versions support."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from comfy_api.latest import io

AnyInput = TypeVar("AnyInput", bound=io.Input)


def advanced(entry: AnyInput) -> AnyInput:
    """Mark an input as advanced, which newer hosts hide by default."""
    entry.extra_dict = {**entry.extra_dict, "advanced": True}
    return entry


def schema(*, search_aliases: list[str], **description: Any) -> io.Schema:
    """io.Schema with search aliases, if the host supports them (newer than 0.8.0)."""
    if "search_aliases" in {field.name for field in fields(io.Schema)}:
        description["search_aliases"] = search_aliases
    return io.Schema(**description)
