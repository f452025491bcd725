"""What users get: every folder of the pack is installed, and the registry's archive is small."""

from __future__ import annotations

import sys
from pathlib import Path

import onestep_sr
import pytest
from registry_archive import archived_files, write_archive

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(onestep_sr.__file__).parent
FOR_DEVELOPERS = {".ci", ".github", "benchmarks", "demo", "docs", "scripts", "tests"}
NEEDS_GIT = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git checkout")


def test_every_folder_of_the_pack_is_installed():
    """setuptools only finds packages named like their folder, but the checkout can have any name."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for part in ("nodes", "sr_models") for path in (ROOT / part).rglob("*.py")}
    found = [".".join(["onestep_sr", *folder.relative_to(ROOT).parts]) for folder in folders]
    assert listed == ["onestep_sr", *sorted(found)]


@NEEDS_GIT
def test_the_registrys_archive_holds_the_pack_and_no_tests_or_training_data(tmp_path: Path) -> None:
    files = {Path(name) for name in archived_files()}
    assert not {path.parts[0] for path in files} & FOR_DEVELOPERS
    pictures = {path.parts[0] for path in files if path.suffix in (".png", ".jpg", ".webp", ".tif", ".mp4")}
    assert pictures == {"web", "workflows"}
    package = {path.relative_to(ROOT) for part in ("nodes", "sr_models") for path in (ROOT / part).rglob("*.py")}
    assert files >= package | {Path(name) for name in ("__init__.py", "pyproject.toml", "LICENSE", "README.md")}
    write_archive(tmp_path / "node.zip")
    assert (tmp_path / "node.zip").stat().st_size < 8_000_000
