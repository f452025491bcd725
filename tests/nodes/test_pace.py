"""The stored speed of past runs. Here `nodes` has a stand-in for the part that imports ComfyUI."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The pack's folder in the user's, which does not exist before the first run."""
    return tmp_path / "user" / "onestep_sr"


@pytest.fixture
def pace(folder: Path) -> Iterator[types.ModuleType]:
    parts = {
        "": {"__path__": [str(ROOT / "nodes")]},
        ".host": {"user_folder": lambda: folder, "device_name": lambda: "cpu"},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, contents in parts.items():
            stand_in = types.ModuleType(f"onestep_sr.nodes{name}")
            vars(stand_in).update(contents)
            patch.setitem(sys.modules, stand_in.__name__, stand_in)
        yield importlib.import_module("onestep_sr.nodes.pace")
        sys.modules.pop("onestep_sr.nodes.pace")


def test_the_first_run_is_stored_and_a_later_one_takes_its_place(pace) -> None:
    assert pace.expected_seconds("bundled", 100) is None
    pace.record("bundled", 50, 2.0)
    assert pace.expected_seconds("bundled", 100) == 4.0
    pace.record("bundled", 50, 1.0)
    pace.record("other", 1, 3.0)
    assert pace.expected_seconds("bundled", 100) == 2.0
    assert pace.expected_seconds("other", 2) == 6.0


def test_a_folder_that_cannot_be_made_costs_no_result(pace, folder: Path) -> None:
    folder.parent.write_text("a file in the folder's place")
    pace.record("bundled", 50, 2.0)
    assert pace.expected_seconds("bundled", 100) is None
