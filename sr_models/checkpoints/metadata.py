"""What files say about themselves in JSON, read under bounds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from typing import Any, NoReturn

from ..errors import UserError
from .pickle_scan import shown

MAX_BYTES, MAX_DEPTH = 2**20, 16


def read_json(text: str, file_name: str, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Any:
    """The content of a JSON text. Raises UserError where it is longer or nested deeper than that, is not JSON, or holds
    numbers that are not finite."""
    try:
        if len(text) > max_bytes:
            raise ValueError(f"it is longer than {max_bytes} bytes")
        content = json.loads(text, parse_constant=_not_finite)
        _require_depth(content, max_depth)
    except (ValueError, RecursionError) as error:
        raise broken_description(file_name, error) from error
    return content


def broken_description(file_name: str, error: Exception) -> UserError:
    """Of a file whose metadata is not what it should be."""
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else shown(str(error))
    return UserError(f"{file_name} has a broken description ({reason}): download it again.")


def require_within(fields: Mapping[str, Any], bounds: Mapping[str, tuple[float, float]]) -> None:
    """Raise ValueError for a number that is outside its bounds (lowest, highest); TypeError where it is not a number,
    or not whole where both bounds are."""
    for name in fields.keys() & bounds.keys():
        value, (low, high) = fields[name], bounds[name]
        whole = isinstance(low, int) and isinstance(high, int)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise TypeError(f"{name} is {value!r}")
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}, which is not within {low} and {high}")


def _not_finite(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a finite number")


def _require_depth(content: Any, left: int) -> None:
    if not left:
        raise RecursionError
    if isinstance(content, float) and not isfinite(content):
        _not_finite(str(content))
    for value in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        _require_depth(value, left - 1)
