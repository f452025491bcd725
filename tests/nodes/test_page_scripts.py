"""The page's scripts that need no browser, run by Node.js on stand-ins for the graph's nodes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

NODE = shutil.which("node")
GRAPH = """
function made(type, widgets = {}, sources = {}, more = {}) {
  const names = Object.keys(sources)
  return {
    type, mode: 0, properties: {}, size: [200, 100], computeSize: () => [200, 100],
    widgets: Object.entries(widgets).map(([name, value]) => ({ name, value, options: {} })),
    inputs: names.map((name) => ({ name, link: 1 })),
    getInputNode: (slot) => sources[names[slot]],
    addWidget(type, name, value, callback, options) {
      this.widgets.push({ type, name, value, callback, options })
      return this.widgets.at(-1)
    },
    ...more,
  }
}
function load(image, naturalWidth, naturalHeight) {
  return made("LoadImage", { image }, {}, { imgs: [{ naturalWidth, naturalHeight }] })
}
const photo = load("a.png", 101, 61)
const three = made("RepeatImageBatch", { amount: 3 }, { image: photo })
const seen = (origin) => images(made("Upscale", {}, { image: origin }), "image")
"""


@pytest.fixture
def run(tmp_path: Path) -> Any:
    if NODE is None:
        pytest.skip("no Node.js")
    for name in ("image_size", "widgets"):
        shutil.copy(ROOT / "web" / "js" / f"{name}.js", tmp_path / f"{name}.mjs")

    def evaluated(expression: str) -> Any:
        imports = 'import { images } from "./image_size.mjs"\nimport { addSeedControl, show } from "./widgets.mjs"\n'
        script = tmp_path / "script.mjs"
        script.write_text(f"{imports}{GRAPH}\nconsole.log(JSON.stringify({expression}))")
        return json.loads(subprocess.run([NODE, script], check=True, capture_output=True, text=True).stdout)

    return evaluated


def test_resize_and_batch_nodes_are_followed_as_comfyui_rounds(run: Any) -> None:
    found = run(
        """[
            seen(photo),
            seen(made("ImageScaleBy", { scale_by: 2.5 }, { image: photo })),
            seen(made("ImageScale", { width: 0, height: 122 }, { image: photo })),
            seen(made("ImageScaleToTotalPixels", { megapixels: 1 }, { image: photo })),
            seen(made("ImageScaleToMaxDimension", { largest_size: 64 }, { image: photo })),
            seen(made("ImageInvert", {}, { image: photo })),
            seen(made("Reroute", {}, { "": photo })),
            seen(made("ImageBatch", {}, { image1: photo, image2: three })),
        ]"""
    )
    scale = (2**20 / (101 * 61)) ** 0.5
    assert found == [
        [101, 61, 1],
        [round(2.5 * 101), round(2.5 * 61), 1],
        [round(101 * 122 / 61), 122, 1],
        [round(101 * scale), round(61 * scale), 1],
        [64, round(61 / 101 * 64), 1],
        [101, 61, 1],
        [101, 61, 1],
        [101, 61, 4],
    ]


def test_what_the_graph_does_not_tell_is_not_guessed(run: Any) -> None:
    found = run(
        """[
            seen(made("VAEDecode", {}, { samples: photo })),
            seen(made("KSampler", {}, {}, { imgs: photo.imgs })),
            seen(made("ImageScaleBy", { scale_by: 2 }, { image: photo, scale_by: made("PrimitiveFloat") })),
            seen(made("ImageInvert", {}, { image: photo }, { mode: 4 })),
            seen(load("several.gif", 10, 10)),
            seen(undefined),
        ]"""
    )
    assert found == [None] * 6


def test_a_seed_changes_after_a_run_as_chosen_and_not_while_it_is_hidden(run: Any) -> None:
    found = run(
        """(() => {
            const node = made("Upscale", { seed: 5, mask: 0 })
            addSeedControl(node)
            const [seed, , control] = node.widgets
            const seeds = [control.value, control.serialize, (control.afterQueued(), seed.value)]
            for (const choice of ["increment", "decrement"]) {
                control.value = choice
                control.afterQueued()
                seeds.push(seed.value)
            }
            show(node, "control_after_generate", false)
            control.afterQueued()
            node.properties.control_after_generate = "randomize"
            node.onConfigure()
            return [...seeds, seed.value, control.value]
        })()"""
    )
    assert found == ["fixed", False, 5, 6, 5, 5, "randomize"]
