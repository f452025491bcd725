"""Renamed nodes: the table compared with the existing nodes, and the call to newer hosts.

Neither supported host knows replacements yet, so the call is checked against the documented signature with stand-ins.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import sys
import types

import pytest
from places import ROOT

FILE = ROOT / "nodes" / "replacements.py"


@pytest.fixture
def replacements() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("replacements_alone", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def node_ids() -> set[str]:
    trees = (ast.parse(path.read_text()) for path in (ROOT / "nodes").glob("*.py") if path != FILE)
    constants = (node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str) and value.startswith("OneStepSR")}


def test_old_ids_do_not_exist_and_new_ones_do(replacements: types.ModuleType) -> None:
    assert "OneStepSRModel" in node_ids()
    for entry in replacements.RENAMED:
        assert entry.new in node_ids() and entry.old not in node_ids()


def test_a_rename_reaches_a_host_that_knows_them(
    replacements: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    class NodeReplacement:
        async def register(self, entry: dict) -> None:
            told.append(entry)

    class ComfyAPI:
        node_replacement = NodeReplacement()

    latest = types.ModuleType("comfy_api.latest")
    latest.io, latest.ComfyAPI = types.SimpleNamespace(NodeReplace=dict), ComfyAPI
    monkeypatch.setitem(sys.modules, "comfy_api", types.ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", latest)
    renamed = (replacements.Renamed("OneStepSROld", "OneStepSRNew", (("scale", "factor"), ("image", "image"))),)
    asyncio.run(replacements.register(renamed))
    mapping = [{"new_id": "scale", "old_id": "factor"}, {"new_id": "image", "old_id": "image"}]
    assert told == [{"new_node_id": "OneStepSRNew", "old_node_id": "OneStepSROld", "input_mapping": mapping}]


def test_nothing_happens_on_a_host_that_does_not(
    replacements: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    latest = types.ModuleType("comfy_api.latest")
    latest.io = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "comfy_api", types.ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", latest)
    asyncio.run(replacements.register((replacements.Renamed("OneStepSROld", "OneStepSRNew"),)))
