"""EXIF blocks (JEITA CP-3451; the directories of TIFF 6.0): read, changed, and written back.

What is not changed keeps its bytes: no value is decoded, so that unknown tags and maker notes survive.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from mmap import mmap

WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}  # bytes a value, by type
BIG_WIDTHS = WIDTHS | {16: 8, 17: 8, 18: 8}
ASCII, SHORT, LONG, RATIONAL, UNDEFINED = 2, 3, 4, 5, 7
MAX_ENTRIES = 4096

WIDTH, HEIGHT, DESCRIPTION, ORIENTATION = 0x0100, 0x0101, 0x010E, 0x0112
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT, SOFTWARE = 0x011A, 0x011B, 0x0128, 0x0131
EXIF_POINTER, GPS_POINTER, INTEROP_POINTER = 0x8769, 0x8825, 0xA005
USER_COMMENT, PIXEL_WIDTH, PIXEL_HEIGHT = 0x9286, 0xA002, 0xA003
POINTERS = (EXIF_POINTER, GPS_POINTER, INTEROP_POINTER)
INCHES, CENTIMETRES = 2, 3


@dataclass(frozen=True)
class Entry:
    """A tag's value: its TIFF type, and its bytes in the block's byte order."""

    kind: int
    data: bytes

    @property
    def count(self) -> int:
        return len(self.data) // BIG_WIDTHS[self.kind]

    def swapped(self) -> Entry:
        """The same value in the other byte order."""
        width = {5: 4, 10: 4}.get(self.kind, BIG_WIDTHS[self.kind])
        parts = (self.data[start : start + width][::-1] for start in range(0, len(self.data), width))
        return replace(self, data=b"".join(parts))


Directory = dict[int, Entry]
Block = bytes | mmap


@dataclass(frozen=True)
class Exif:
    """The directories of a block; `order` is struct's sign of its byte order. Thumbnails are left out: they show
    the picture as it was."""

    order: str = ">"
    main: Directory = field(default_factory=dict)
    photo: Directory = field(default_factory=dict)
    gps: Directory = field(default_factory=dict)
    interop: Directory = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.main or self.photo or self.gps)

    def with_main(self, changes: Directory) -> Exif:
        return replace(self, main=self.main | changes)

    def with_photo(self, changes: Directory) -> Exif:
        return replace(self, photo=self.photo | changes)

    def in_order(self, order: str) -> Exif:
        if order == self.order:
            return self
        parts = {
            name: {tag: entry.swapped() for tag, entry in getattr(self, name).items()}
            for name in ("main", "photo", "gps", "interop")
        }
        return Exif(order, **parts)

    def number(self, entry: Entry | None) -> int | None:
        """The first value of a BYTE, SHORT or LONG."""
        code = {1: "B", SHORT: "H", LONG: "I"}.get(entry.kind) if entry else None
        if entry is None or code is None or not entry.data:
            return None
        return struct.unpack_from(self.order + code, entry.data)[0]

    def ratio(self, entry: Entry | None) -> float | None:
        """The first value of a RATIONAL; None where there is none, or it is not finite."""
        if entry is None or entry.kind != RATIONAL or not entry.data:
            return None
        over, under = struct.unpack_from(self.order + "II", entry.data)
        return over / under if under else None

    def short(self, value: int) -> Entry:
        return Entry(SHORT, struct.pack(self.order + "H", value))

    def long(self, value: int) -> Entry:
        return Entry(LONG, struct.pack(self.order + "I", value))

    def rational(self, value: float) -> Entry:
        under = 1 if value == round(value) else 10_000
        return Entry(RATIONAL, struct.pack(self.order + "II", min(round(value * under), 2**32 - 1), under))


def ascii_entry(text: str) -> Entry:
    return Entry(ASCII, text.encode() + b"\0")


def text_of(entry: Entry | None) -> str:
    return entry.data.split(b"\0")[0].decode("utf-8", "replace").strip() if entry else ""


def comment_entry(text: str, order: str) -> Entry:
    """A UserComment: the value begins with eight bytes that name its character code."""
    if text.isascii():
        return Entry(UNDEFINED, b"ASCII\0\0\0" + text.encode())
    return Entry(UNDEFINED, b"UNICODE\0" + text.encode("utf-16-be" if order == ">" else "utf-16-le"))


def comment_of(entry: Entry | None, order: str) -> str:
    """The text of a UserComment, or '' where there is none or its character code is another."""
    code, data = (entry.data[:8], entry.data[8:]) if entry else (b"", b"")
    if code == b"UNICODE\0":
        text = data.decode("utf-16-be" if order == ">" else "utf-16-le", "replace")
    elif code == b"ASCII\0\0\0":
        text = data.decode("utf-8", "replace")
    else:
        return ""
    return text.rstrip("\0 ")


def parse_exif(block: bytes) -> Exif:
    """An EXIF block, with or without the 'Exif' in front. Raises ValueError where it is none; damaged parts of it
    are left out."""
    block = block.removeprefix(b"Exif\0\0")
    order = byte_order(block)
    (offset,) = struct.unpack_from(order + "I", block.ljust(8, b"\0"), 4)
    return exif_at(block, order, offset)


def byte_order(block: bytes) -> str:
    try:
        return {b"II": "<", b"MM": ">"}[bytes(block[:2])]
    except KeyError:
        raise ValueError("not an EXIF block") from None


def exif_at(block: Block, order: str, offset: int, big: bool = False) -> Exif:
    """The directory at `offset` of a block or TIFF file, and those that it points to."""
    main = read_directory(block, order, offset, big)
    photo = _pointed(block, order, main, EXIF_POINTER, big)
    gps = _pointed(block, order, main, GPS_POINTER, big)
    interop = _pointed(block, order, photo, INTEROP_POINTER, big)
    return Exif(order, *(_without_pointers(part) for part in (main, photo, gps, interop)))


def _without_pointers(directory: Directory) -> Directory:
    return {tag: entry for tag, entry in directory.items() if tag not in POINTERS and entry.kind in WIDTHS}


def _pointed(block: Block, order: str, directory: Directory, tag: int, big: bool) -> Directory:
    entry = directory.get(tag)
    if entry is None or len(entry.data) not in (4, 8):
        return {}
    (offset,) = struct.unpack(order + ("I" if len(entry.data) == 4 else "Q"), entry.data)
    return read_directory(block, order, offset, big)


def read_directory(block: Block, order: str, offset: int, big: bool = False) -> Directory:
    """The entries of a directory; those that reach beyond the block's end are left out."""
    found: Directory = {}
    for tag, kind, count, value in _raw_entries(block, order, offset, big):
        width = (BIG_WIDTHS if big else WIDTHS).get(kind)
        if width is None or not count:
            continue
        size = width * count
        if size > len(value):
            (start,) = struct.unpack(order + ("Q" if big else "I"), value)
            value = block[start : start + size]  # noqa: PLW2901
        if len(value) >= size:
            found.setdefault(tag, Entry(kind, bytes(value[:size])))
    return found


def _raw_entries(block: Block, order: str, offset: int, big: bool) -> Iterator[tuple[int, int, int, bytes]]:
    head, form = ("Q", "HHQ8s") if big else ("H", "HHI4s")
    try:
        (count,) = struct.unpack_from(order + head, block, offset)
        start = offset + struct.calcsize(order + head)
        for number in range(min(count, MAX_ENTRIES)):
            yield struct.unpack_from(order + form, block, start + number * struct.calcsize(order + form))
    except struct.error:
        return  # cut short: what came before is kept


def to_block(exif: Exif) -> bytes:
    """The whole as a block of its own, without the 'Exif' in front; empty where there is nothing in it."""
    if not exif:
        return b""
    mark = b"II" if exif.order == "<" else b"MM"
    return mark + struct.pack(exif.order + "HI", 42, 8) + pack_exif(exif, 8)


def pack_exif(exif: Exif, offset: int, big: bool = False, following: int = 0) -> bytes:
    """The directories for a place `offset` bytes into a file; `following` is where the file's next one begins."""
    main, photo, interop = dict(exif.main), dict(exif.photo), dict(exif.interop)
    if interop:
        photo[INTEROP_POINTER] = _pointer(exif.order, 0, big)
    for tag, part in ((EXIF_POINTER, photo), (GPS_POINTER, exif.gps)):
        if part:
            main[tag] = _pointer(exif.order, 0, big)
    place = offset + _packed_size(main, big)
    for owner, tag, part in (
        (main, EXIF_POINTER, photo),
        (photo, INTEROP_POINTER, interop),
        (main, GPS_POINTER, exif.gps),
    ):
        if part:
            owner[tag] = _pointer(exif.order, place, big)
            place += _packed_size(part, big)
    packed = b""
    for part, after in ((main, following), (photo, 0), (interop, 0), (exif.gps, 0)):
        if part or part is main:
            packed += _packed(part, exif.order, offset + len(packed), big, after)
    return packed


def _pointer(order: str, offset: int, big: bool) -> Entry:
    return Entry(16, struct.pack(order + "Q", offset)) if big else Entry(LONG, struct.pack(order + "I", offset))


def _packed_size(directory: Directory, big: bool) -> int:
    inline = 8 if big else 4
    return _entries_size(directory, big) + sum(_even(e.data) for e in directory.values() if len(e.data) > inline)


def _entries_size(directory: Directory, big: bool) -> int:
    return 16 + 20 * len(directory) if big else 6 + 12 * len(directory)


def _even(data: bytes) -> int:
    return len(data) + len(data) % 2


def _packed(directory: Directory, order: str, offset: int, big: bool, following: int) -> bytes:
    """A directory and, after it, the values that do not fit into their entries."""
    head, form, link, inline = ("Q", "HHQ", "Q", 8) if big else ("H", "HHI", "I", 4)
    packed = struct.pack(order + head, len(directory))
    values = b""
    place = offset + _entries_size(directory, big)
    for tag, entry in sorted(directory.items()):
        packed += struct.pack(order + form, tag, entry.kind, entry.count)
        if len(entry.data) > inline:
            packed += struct.pack(order + link, place + len(values))
            values += entry.data.ljust(_even(entry.data), b"\0")
        else:
            packed += entry.data.ljust(inline, b"\0")
    return packed + struct.pack(order + link, following) + values
