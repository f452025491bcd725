"""Reading a pickle without running it.

A pickle is a program: it may name any function and have it called. Here its instructions only fill dictionaries,
lists and tuples; a call gives what a table of known calls says, or an inert `Foreign` object. No class is looked up,
nothing outside the table is called, and instructions, memory and depth have bounds. What was checked and what is used
are the same reading, so a file cannot show one content to the check and another to the loader.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from ..errors import UserError

MAX_INSTRUCTIONS = 200_000  # 6,500 tensors; SDXL has 2,500
MAX_DEPTH = 50
MAX_VALUES = 100_000
MAX_COPIED = 1_000_000
SHOWN_CHARACTERS = 80
GET_SAFETENSORS = "get it as safetensors"

# In Python 2, and in numpy before 2.0.
OLD_MODULES = {"__builtin__": "builtins", "numpy.core.multiarray": "numpy._core.multiarray"}


@dataclass(frozen=True, eq=False)
class Named:
    """A function or class that a pickle names, by its full name."""

    name: str


@dataclass(frozen=True, eq=False)
class Foreign:
    """What a call would have given that is not in the table of calls; `entries` is what the pickle puts into it."""

    name: str
    entries: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rules:
    """What a pickle may hold.

    Attributes:
        calls: what a call gives, by the function's name; the function gets the arguments, and raises TypeError or
            ValueError for others than it takes.
        names: what may be named besides, and gives `Foreign` when it is called.
        packages: of which everything may be named.
        stored: what the pickle's container holds under an id. Raises LookupError, TypeError or ValueError.
    """

    calls: Mapping[str, Callable[..., Any]]
    names: Collection[str]
    packages: Collection[str] = ()
    stored: Callable[[Any], Any] | None = None

    def allows(self, name: str) -> bool:
        return name in self.calls or name in self.names or any(name.startswith(f"{each}.") for each in self.packages)


def read_pickle(stream: IO[bytes], rules: Rules, file_name: str) -> Any:
    """The next pickle of a stream, of bytes in memory: dict, list, tuple, str, bytes, numbers, `Named`, `Foreign` and
    what the rules' calls give. The stream is left behind the pickle's end.

    Raises UserError for what the rules forbid and for pickles beyond the bounds; errors of many kinds for broken ones.
    """
    machine = _Machine(rules, file_name)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count == MAX_INSTRUCTIONS:
            raise machine.refusal(f"more than {MAX_INSTRUCTIONS:,} pickle instructions, which weights do not need")
        if opcode.name not in _OPERATIONS:
            raise machine.unknown(opcode.name, argument)
        _OPERATIONS[opcode.name](machine, argument)
    return machine.stack.pop()


def walked(value: Any, leaf: Callable[[Any], Any], file_name: str) -> Any:
    """A copy of nested dict, list, tuple and `Foreign` with names for `Named` and `leaf(value)` for all other values.

    Raises UserError where it is deeper than 50 or holds more than 100,000 values, counting shared ones each time.
    """
    visited = 0

    def walk(value: Any, depth: int) -> Any:
        nonlocal visited
        visited += 1
        if depth > MAX_DEPTH or visited > MAX_VALUES:
            what = f"values nested deeper than {MAX_DEPTH}" if depth > MAX_DEPTH else f"more than {MAX_VALUES:,} values"
            raise UserError(f"{file_name} contains {what}, which weights do not need: {GET_SAFETENSORS}.")
        if isinstance(value, dict):
            return {_key(key): walk(entry, depth + 1) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return type(value)([walk(entry, depth + 1) for entry in value])
        if isinstance(value, Foreign):
            return Foreign(value.name, walk(value.entries, depth + 1))
        return value.name if isinstance(value, Named) else leaf(value)

    return walk(value, 0)


def _key(key: Any) -> Any:
    return key.name if isinstance(key, Named) else key


class _Machine:
    """The stack, the marks in it and the memo of one pickle."""

    def __init__(self, rules: Rules, file_name: str):
        self.rules, self.file_name = rules, file_name
        self.stack: list[Any] = []
        self.below_marks: list[list[Any]] = []
        self.copied = 0  # values that calls and states were given
        self.memo: dict[int, Any] = {}

    def refusal(self, found: str) -> UserError:
        return UserError(f"{self.file_name} contains {found}: {GET_SAFETENSORS}.")

    def unknown(self, opcode: str, argument: Any) -> UserError:
        named = f" of {shown(argument)}" if opcode == "INST" else ""
        return self.refusal(f"the pickle instruction {opcode}{named}, which weights do not need")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def _popped(self, count: int) -> list[Any]:
        values = self.stack[-count:]
        del self.stack[-count:]
        if len(values) < count:
            raise IndexError(count)
        return values

    def skip(self, argument: Any) -> None:
        pass

    def mark(self, argument: Any) -> None:
        self.below_marks.append(self.stack)
        self.stack = []

    def _above_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.below_marks.pop()
        return values

    def make_tuple(self, argument: Any) -> None:
        values = tuple(self._above_mark())
        self.stack.append(values)

    def make_short_tuple(self, count: int) -> None:
        self.stack.append(tuple(self._popped(count)))

    # The memo

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def memoize(self, argument: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    # Filling containers

    def append(self, argument: Any) -> None:
        self._extend(self._popped(1))

    def appends(self, argument: Any) -> None:
        self._extend(self._above_mark())

    def _extend(self, values: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)
        elif not isinstance(self.stack[-1], Foreign):
            raise TypeError(type(self.stack[-1]))

    def set_item(self, argument: Any) -> None:
        self._update(self._popped(2))

    def set_items(self, argument: Any) -> None:
        self._update(self._above_mark())

    def _update(self, values: list[Any]) -> None:
        target = self.stack[-1]
        self._put_into(target.entries if isinstance(target, Foreign) else target, values[::2], values[1::2])

    def _put_into(self, table: dict[Any, Any], keys: list[Any], values: list[Any]) -> None:
        for key, value in zip(keys, values, strict=True):
            # nested keys would be compared by their whole content
            if not isinstance(key, str | bytes | int | float | Named | None):
                raise self.refusal(f"a dictionary with a {type(key).__name__} as key, which weights do not need")
            table[key] = value

    # Names and calls

    def name_global(self, argument: str) -> None:
        module, name = argument.split(" ", 1)
        self._name(module, name)

    def stack_global(self, argument: Any) -> None:
        module, name = self._popped(2)
        self._name(module, name)

    def _name(self, module: str, name: str) -> None:
        full = f"{OLD_MODULES.get(module, module)}.{name}"
        if not self.rules.allows(full):
            raise self.refusal(f"a call of {shown(full)}, which could run code")
        self.stack.append(Named(full))

    def call(self, argument: Any) -> None:
        function, arguments = self._popped(2)
        self.stack.append(self._result(function, arguments))

    def _result(self, function: Named, arguments: tuple[Any, ...]) -> Any:
        if not isinstance(arguments, tuple):
            raise TypeError(type(arguments))
        self._count(arguments, *arguments)
        if function.name in self.rules.calls:
            return self.rules.calls[function.name](*arguments)
        return Foreign(function.name)

    def _count(self, *values: Any) -> None:
        """One instruction may copy what many have made, and be repeated."""
        self.copied += sum(len(value) for value in values if isinstance(value, dict | list | tuple))
        if self.copied > MAX_COPIED:
            raise self.refusal(f"calls of more than {MAX_COPIED:,} values, which weights do not need")

    def build(self, argument: Any) -> None:
        """Attributes of an object: kept of foreign ones, of no use on others."""
        (state,) = self._popped(1)
        target = self.stack[-1]
        state = state[0] if isinstance(state, tuple) and len(state) == 2 else state
        self._count(state)
        if isinstance(target, Foreign) and isinstance(state, dict):
            target.entries.update(state)

    def load_stored(self, argument: Any) -> None:
        (key,) = self._popped(1)
        if self.rules.stored is None:
            raise ValueError("nothing is stored beside this pickle")
        self.stack.append(self.rules.stored(key))


_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _Machine.push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING"), _Machine.push),
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES"), _Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "TUPLE1": lambda machine, _: machine.make_short_tuple(1),
    "TUPLE2": lambda machine, _: machine.make_short_tuple(2),
    "TUPLE3": lambda machine, _: machine.make_short_tuple(3),
    "PROTO": _Machine.skip,
    "FRAME": _Machine.skip,
    "STOP": _Machine.skip,
    "MARK": _Machine.mark,
    "TUPLE": _Machine.make_tuple,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name_global,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.load_stored,
}


def shown(text: str) -> str:
    """A name from a file, for a sentence: on one line and not too long."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in str(text)[:SHOWN_CHARACTERS])
    return printable + ("..." if len(str(text)) > SHOWN_CHARACTERS else "")
