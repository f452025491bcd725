"""The pictures of a folder."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}


def list_images(folder: Path) -> list[Path]:
    """Every picture below `folder`, sorted. Raises UserError where there is none."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{folder} holds no pictures ({', '.join(sorted(SUFFIXES))}): name a folder that does.")
    return files
