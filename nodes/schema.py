"""Schema features that only newer ComfyUI versions support."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from comfy_api.latest import io

AnyInput = TypeVar("AnyInput", bound=io.Input)


def advanced(entry: AnyInput) -> AnyInput:
    """Mark an input as advanced, which newer hosts hide by default."""
    if hasattr(entry, "advanced"):  # newer than 0.8.0; that one's page reads the option too
        entry.advanced = True
    else:
        entry.extra_dict = {**entry.extra_dict, "advanced": True}
    return entry


def schema(**description: Any) -> io.Schema:
    """io.Schema without what this host does not know yet, such as search aliases on 0.8.0."""
    known = {field.name for field in fields(io.Schema)}
    return io.Schema(**{name: value for name, value in description.items() if name in known})
