"""List the pictures in a folder, and the texts next to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError
from .formats import PLUGINS, REFUSED, format_of

SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".tif", ".tiff", ".bmp"}


def is_hidden(path: Path) -> bool:
    """Whether a path inside a folder is hidden: dot files, and the companion files that macOS adds."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def is_picture(path: Path) -> bool:
    """Whether the file's content is a picture that `read_pictures` knows, whatever its name; False where it cannot
    be opened. HEIC, JPEG XL and OpenEXR count: where their package is not installed, reading says so."""
    try:
        found = format_of(path)
    except OSError:
        return False
    return found in PLUGINS or (found is not None and found not in REFUSED)


def caption_file(picture: Path) -> Path:
    """Where the text of a picture is: `photo.txt` for `photo.jpg`."""
    return picture.with_suffix(".txt")


def caption_of(picture: Path) -> str | None:
    """The text next to a picture; None if it does not exist or is empty. Raises UserError if it cannot be read."""
    file = caption_file(picture)
    try:
        text = file.read_text(encoding="utf-8-sig", errors="replace").strip() if file.is_file() else ""
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): check it, or move it away.") from error
    return text or None


def list_images(folder: Path) -> list[Path]:
    """Every picture in `folder` and its subfolders, sorted. Raises UserError if there are none."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{folder} contains no pictures ({', '.join(sorted(SUFFIXES))}): choose a folder that does.")
    return files


def stream_pictures(folder: Path) -> Iterator[Path]:
    """Every picture in the folder and its subfolders, ordered by name only, one directory at a time."""
    with os.scandir(folder) as entries:
        names = sorted((entry.name, entry.is_dir()) for entry in entries)
    for name, is_folder in names:
        if is_folder:
            yield from stream_pictures(folder / name)
        elif Path(name).suffix.lower() in SUFFIXES:
            yield folder / name
