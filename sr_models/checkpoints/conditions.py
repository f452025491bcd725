"""Conditions on a file's header, as data. They can also explain why a file does not match."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from .header import FileKind, Header
from .weights_file import shortened


class Condition(Protocol):
    def missing(self, header: Header) -> str:
        """Empty if the file matches, else the reason: a phrase to follow the file's name, as "lacks conv_in.weight"."""
        ...

    def share(self, header: Header) -> float:
        """How much of the condition the file fulfils, 0 to 1, to find the most similar kind for a rejected file."""
        ...


class Has:
    """The file has all of these tensors."""

    def __init__(self, *names: str):
        self.names = names

    def missing(self, header: Header) -> str:
        absent = [name for name in self.names if name not in header.shapes]
        return f"lacks {shortened(absent)}" if absent else ""

    def share(self, header: Header) -> float:
        return sum(name in header.shapes for name in self.names) / len(self.names)


PIPELINE = ("model_index.json", "scheduler", "text_encoder")


def is_pipeline(folder: Path) -> bool:
    """Whether a folder is a whole diffusers pipeline, not only some of its networks."""
    return any((folder / name).exists() for name in PIPELINE)


class _Simple:
    """A test, and the phrase for a file that does not pass it."""

    def __init__(self, fits: Callable[[Header], bool], phrase: str):
        self.fits, self.phrase = fits, phrase

    def missing(self, header: Header) -> str:
        return "" if self.fits(header) else self.phrase

    def share(self, header: Header) -> float:
        return float(self.fits(header))


class HasPrefix(_Simple):
    """The file has a tensor with one of these prefixes in its name."""

    def __init__(self, *prefixes: str):
        phrase = f"lacks {' or '.join(f'{prefix}*' for prefix in prefixes)}"
        super().__init__(lambda header: any(n.startswith(prefixes) for n in header.shapes), phrase)


class HasSuffix(_Simple):
    """The file has a tensor with one of these suffixes in its name."""

    def __init__(self, *suffixes: str):
        phrase = f"lacks {' or '.join(f'*{suffix}' for suffix in suffixes)}"
        super().__init__(lambda header: any(n.endswith(suffixes) for n in header.shapes), phrase)


class Metadata(_Simple):
    """The file has this entry in its metadata, with any value or with this one."""

    def __init__(self, key: str, value: str | None = None):
        wanted = repr(key) if value is None else f"{key!r} = {value!r}"
        super().__init__(
            lambda header: key in header.metadata and value in (None, header.metadata[key]),
            f"lacks the metadata {wanted}",
        )


class Kind(_Simple):
    """The file has this format."""

    def __init__(self, kind: FileKind):
        super().__init__(lambda header: header.kind == kind, f"is not a {kind} file")


class InFolder(_Simple):
    """The file is in a folder of this name next to the other one, and they are not parts of a whole pipeline."""

    def __init__(self, name: str, *, beside: str):
        def fits(header: Header) -> bool:
            folder = header.path.parent
            return folder.name == name and (folder.parent / beside).is_dir() and not is_pipeline(folder.parent)

        super().__init__(fits, f"is not in a folder {name} next to {beside}")


class Shape:
    """The file has a tensor with this shape; None matches any length."""

    def __init__(self, name: str, *sides: int | None):
        self.name, self.sides = name, sides

    def missing(self, header: Header) -> str:
        found = header.shapes.get(self.name)
        if found is None:
            return f"lacks {self.name}"
        if len(found) == len(self.sides) and all(s in (None, f) for s, f in zip(self.sides, found, strict=True)):
            return ""
        wanted = ", ".join("any" if side is None else str(side) for side in self.sides)
        return f"has {self.name} of shape {found} instead of ({wanted})"

    def share(self, header: Header) -> float:
        return (self.name in header.shapes) / 2 + (not self.missing(header)) / 2


class All:
    """All of these conditions."""

    def __init__(self, *conditions: Condition):
        self.conditions = conditions

    def missing(self, header: Header) -> str:
        phrases = [condition.missing(header) for condition in self.conditions]
        return " and ".join(filter(None, phrases))

    def share(self, header: Header) -> float:
        shares = [condition.share(header) for condition in self.conditions if not isinstance(condition, Not)]
        return sum(shares) / max(1, len(shares))


class AnyOf:
    """At least one of these conditions. The reason for a mismatch is that of the most similar condition."""

    def __init__(self, *conditions: Condition):
        self.conditions = conditions

    def missing(self, header: Header) -> str:
        if not all(condition.missing(header) for condition in self.conditions):
            return ""
        return max(self.conditions, key=lambda condition: condition.share(header)).missing(header)

    def share(self, header: Header) -> float:
        return max(condition.share(header) for condition in self.conditions)


class Not:
    """The opposite of a condition. `phrase` is the reason for a mismatch.

    The absence of tensors does not make a file similar, so its share is 0, and `All` does not count it.
    """

    def __init__(self, condition: Condition, phrase: str):
        self.condition, self.phrase = condition, phrase

    def missing(self, header: Header) -> str:
        return self.phrase if not self.condition.missing(header) else ""

    def share(self, header: Header) -> float:
        return 0.0
