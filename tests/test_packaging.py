"""Every folder of the pack is in the list of packages in pyproject.toml."""

from __future__ import annotations

import sys
from pathlib import Path

import onestep_sr

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(onestep_sr.__file__).parent


def test_every_folder_of_the_pack_is_installed():
    """setuptools only finds packages named like their folder, but the checkout can have any name."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for part in ("nodes", "sr_models") for path in (ROOT / part).rglob("*.py")}
    found = [".".join(["onestep_sr", *folder.relative_to(ROOT).parts]) for folder in folders]
    assert listed == ["onestep_sr", *sorted(found)]
