"""Writing TIFF: tifffile writes the pixels, by rows or whole pages; then each page's directory is written again with
what describes the picture, which tifffile leaves no way to write (EXIF and GPS are directories of their own)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import chain
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np

from .exif import UNDEFINED, Entry, Exif, pack_exif, read_directory
from .metadata import Metadata, fitted, with_resolution, with_texts
from .picture import Picture, as_floats, as_integers
from .tiff import DESCRIPTIVE, IPTC, XMP, page_offsets

CLASSIC_TIFF_LIMIT = 2**32 - 2**25


def write_tiff(path: Path, pictures: Iterable[Picture], count: int = 1) -> None:
    """Each of the `count` pictures becomes a page of its own size and depth."""
    import tifffile

    iterator = iter(pictures)
    first = next(iterator)
    described: list[Metadata] = []
    with tifffile.TiffWriter(path, bigtiff=count * tiff_values(first).nbytes > CLASSIC_TIFF_LIMIT) as writer:
        for picture in chain([first], iterator):
            channels = 3 if picture.alpha is None else 4
            writer.write(tiff_values(picture), **tiff_options(channels, picture.icc_profile))
            described.append(fitted(picture.metadata, *picture.pixels.shape[-2:]))
    describe_pages(path, described)


def tiff_values(picture: Picture) -> np.ndarray:
    if picture.bits == 32:
        return as_floats(picture)
    return as_integers(picture, picture.alpha is not None, np.uint16 if picture.bits == 16 else np.uint8)


def tiff_options(channels: int, profile: bytes | None) -> dict[str, Any]:
    """tifffile's options for RGB, with alpha as a fourth channel."""
    return {
        "photometric": "rgb",
        "extrasamples": ["unassalpha"] if channels == 4 else None,
        "compression": "zlib",
        "predictor": True,
        "iccprofile": profile,
        "metadata": None,
        "software": False,
    }


def describe_pages(path: Path, described: Sequence[Metadata]) -> None:
    """Put each page's metadata into its directory, which moves to the end of the file."""
    with path.open("r+b") as file:
        with mmap(file.fileno(), 0, access=ACCESS_READ) as block:
            order, big = {b"II": "<", b"MM": ">"}[block[:2]], 43 in block[2:4]
            pages = [read_directory(block, order, offset, big) for offset in page_offsets(block, order, big)]
        following = 0
        for page, metadata in reversed(list(zip(pages, described, strict=True))):
            place = file.seek(0, 2)
            place += file.write(bytes(place % 2))
            file.write(pack_exif(_described(page, metadata, order), place, big, following))
            following = place
        file.seek(8 if big else 4)
        file.write(struct.pack(order + ("Q" if big else "I"), following))


def _described(page: dict[int, Entry], metadata: Metadata, order: str) -> Exif:
    """A page's directory with everything that TIFF has a tag for; texts go into the UserComment."""
    exif = with_resolution(metadata.exif, metadata.dpi).in_order(order)
    exif = with_texts(exif, metadata.text)
    main = page | {tag: entry for tag, entry in exif.main.items() if tag in DESCRIPTIVE}
    for tag, kind, data in ((XMP, 1, metadata.xmp), (IPTC, UNDEFINED, metadata.iptc)):
        if data:
            main[tag] = Entry(kind, data)
    return Exif(order, main, exif.photo, exif.gps, exif.interop)
