"""What nodes keep in memory between two runs of a graph."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Kept(Generic[Key, Value]):
    """Values that nodes of a graph share, by their keys. Only those that the last graph used are kept."""

    def __init__(self) -> None:
        self._values: dict[Key, Value] = {}

    def get(self, key: Key, used: Collection[Key], make: Callable[[], Value]) -> Value:
        """The value of a key, which is made if it is not kept; `used` are the keys of all nodes in the graph."""
        self._values = {each: value for each, value in self._values.items() if each == key or each in used}
        if key not in self._values:
            self._values[key] = make()
        return self._values[key]
