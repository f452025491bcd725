"""The archive that ComfyUI's registry gives to users, as `comfy node pack` writes it."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

from places import ROOT


def archived_files() -> list[str]:
    """What git tracks, without what `.comfyignore` lists."""
    return sorted({*git_files("--cached")} - {*git_files("--cached", "--ignored", "--exclude-from=.comfyignore")})


def git_files(*options: str) -> list[str]:
    command = ["git", "ls-files", "-z", *options]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [name for name in names if (ROOT / name).is_file()]


def write_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in archived_files():
            archive.write(ROOT / name, name)
