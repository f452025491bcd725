"""What newer hosts know about a node's schema and older ones do not."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from comfy_api.latest import io

AnyInput = TypeVar("AnyInput", bound=io.Input)


def advanced(entry: AnyInput) -> AnyInput:
    """The input, folded away by hosts that can until the user asks for more."""
    entry.extra_dict = {**entry.extra_dict, "advanced": True}
    return entry


def schema(*, search_aliases: list[str], **description: Any) -> io.Schema:
    """io.Schema with the words that the node is also found by, where the host knows them (after 0.8.0)."""
    if "search_aliases" in {field.name for field in fields(io.Schema)}:
        description["search_aliases"] = search_aliases
    return io.Schema(**description)
