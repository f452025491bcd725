"""The nodes' texts in the format of `locales/`.

`python tests/node_texts.py` writes the English file from the schemas of an installed ComfyUI; translations are
updated by hand.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from comfyui_host import installed_hosts, start, stop
from places import ROOT

LOCALES = ROOT / "locales"
# Those of ComfyUI's page, and German for hosts that have it.
LANGUAGES = ("en", "zh", "zh-TW", "ja", "ko", "fr", "es", "ru", "ar", "tr", "pt-BR", "fa", "uk", "de")
Texts = dict[str, Any]


def texts_of(language: str) -> Texts:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def node_texts(object_info: dict[str, Any]) -> Texts:
    """display_name, description, inputs' names and tooltips, outputs' names: in ComfyUI's nodeDefs layout."""
    return {kind: _texts(info) for kind, info in sorted(object_info.items()) if kind.startswith("OneStepSR")}


def _texts(info: dict[str, Any]) -> Texts:
    texts: Texts = {"display_name": info["display_name"], "description": info["description"], "inputs": {}}
    for group in ("required", "optional"):
        for name, spec in info["input"].get(group, {}).items():
            tooltip = (spec[1] if len(spec) > 1 else {}).get("tooltip")
            texts["inputs"][name] = {"name": name} | ({"tooltip": tooltip} if tooltip else {})
    if info["output"]:
        pairs = enumerate(zip(info["output_name"], info["output_tooltips"], strict=True))
        texts["outputs"] = {str(i): {"name": name, "tooltip": tooltip} for i, (name, tooltip) in pairs}
    return texts


def paths_of(texts: Texts, prefix: str = "") -> set[str]:
    """Every text's place: OneStepSRModel.inputs.vae.tooltip and the like."""
    found = set()
    for key, value in texts.items():
        found |= paths_of(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}"}
    return found


def main() -> None:
    base = Path(tempfile.mkdtemp())
    host = start(installed_hosts()[0], base)
    try:
        texts = node_texts(host.object_info)
    finally:
        stop(host)
        shutil.rmtree(base)
    path = LOCALES / "en" / "nodeDefs.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(texts, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
