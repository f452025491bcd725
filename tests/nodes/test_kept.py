"""What nodes keep between two runs, without ComfyUI."""

from __future__ import annotations

import importlib
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT

KEYS = st.integers(0, 4)


@pytest.fixture(scope="module")
def kept() -> types.ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        package = types.ModuleType("onestep_sr.nodes")
        package.__path__ = [str(ROOT / "nodes")]
        patch.setitem(sys.modules, package.__name__, package)
        module = importlib.import_module("onestep_sr.nodes.kept")
        sys.modules.pop(module.__name__)
    return module


@given(runs=st.lists(st.tuples(KEYS, st.sets(KEYS)), max_size=12))
def test_a_value_is_made_once_for_as_long_as_graphs_use_it(kept, runs) -> None:
    values, alive = kept.Kept(), set()
    for key, used in runs:
        made: list[int] = []
        assert values.get(key, used, lambda key=key, made=made: made.append(key) or f"value {key}") == f"value {key}"
        alive &= used | {key}
        assert made == ([] if key in alive else [key])
        alive.add(key)


def test_what_is_no_longer_used_is_dropped_before_a_new_value_is_made(kept) -> None:
    values, seen = kept.Kept(), []

    class Value:
        def __del__(self) -> None:
            seen.append("dropped")

    values.get("old", (), Value)
    values.get("new", (), lambda: seen.append("made"))
    assert seen == ["dropped", "made"]
