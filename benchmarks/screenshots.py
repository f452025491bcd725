"""Pictures of the nodes in ComfyUI's page, from a real server and a real browser.

    PYTHONPATH=tests python benchmarks/screenshots.py screenshots

Needs a ComfyUI and a Chromium, as the browser tests do (CONTRIBUTING.md). FOLDER/templates gets every template in both
looks. The other folders have the repository's own pictures, which `cp -r screenshots/{docs,web,workflows} .` replaces:
those of the docs, of the nodes' help pages, and of the templates whose results need files that are not part of the pack.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from comfyui_host import Host, installed_hosts, start, stop
from comfyui_page import CHROMIUM, CLASSIC, LOOKS, NODES_2, load_workflow, open_page, press_run, set_widget, playwright
from comfyui_page import Locator, Page, shown_picture
from PIL import Image, ImageDraw, ImageFont
from places import NAMED_IN_WORKFLOWS, ROOT, template

VIEW = {"width": 1800, "height": 1240}
GRAPH = (110, 110, 1560, 1020)  # the part of the page without menus: left, top, width, height
UPSCALE, COMPARE, SAVE = "OneStepSRUpscaleImage", "OneStepSRCompareImages", "SaveImage"
EDGE = 640  # of a template's picture, the longest
HELP_EDGE = 560
REGION = (70, 30, 130, 120)  # of the face in demo/photo.png
# What a template's result needs, for those whose pictures show the graph.
NEEDS = {
    "text-to-image": "a checkpoint such as Stable Diffusion 1.5",
    "creative": "a checkpoint such as Stable Diffusion 1.5",
    "compare-two": "TAD-SR and SinSR",
    "published-files": "TAD-SR, SinSR or ResShift",
    "tsd-sr": "Stable Diffusion 3 and TSD-SR",
    "tsd-sr-stock-parts": "Stable Diffusion 3 and TSD-SR",
    "4k-and-8k": "Stable Diffusion 3 and TSD-SR",
    "tad-seesr": "Stable Diffusion 2.1-base, TAD-SeeSR and RAM",
    "pisa-sr": "Stable Diffusion 2.1-base and PiSA-SR",
    "osediff": "Stable Diffusion 2.1-base and OSEDiff",
    "which-family-when": "Stable Diffusion 2.1-base, PiSA-SR, OSEDiff, HYPIR",
}
FIT = """([left, top, width, height]) => {
    const boxes = app.graph._nodes.map((node) => node.boundingRect ?? node.getBounding())
    const x = Math.min(...boxes.map((box) => box[0])), y = Math.min(...boxes.map((box) => box[1]))
    const right = Math.max(...boxes.map((box) => box[0] + box[2])) + 10
    const bottom = Math.max(...boxes.map((box) => box[1] + box[3])) + 50
    const scale = Math.min(width / (right - x), height / (bottom - y), 1)
    app.canvas.ds.scale = scale
    app.canvas.ds.offset = [left / scale - x, top / scale - y]
    app.canvas.setDirty(true, true)
    return [scale * (right - x), scale * (bottom - y)]
}"""
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False}


@contextmanager
def running_host() -> Iterator[Host]:
    """The newest installed ComfyUI, with empty files where the templates expect weights."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        for file in NAMED_IN_WORKFLOWS:
            (base / "models" / file).parent.mkdir(parents=True, exist_ok=True)
            (base / "models" / file).touch()
        (base / "input").mkdir()
        host = start(installed_hosts()[-1], base)
        try:
            host.post("/api/settings", SETTINGS)
            yield host
        finally:
            stop(host)


def put_photo(host: Host, region: tuple[int, int, int, int] | None = None) -> None:
    """The demo's photo as what Load Image starts with; a region of it as the mask editor paints it, transparent."""
    photo = Image.open(ROOT / "demo" / "photo.png").convert("RGBA" if region else "RGB")
    if region:
        alpha = Image.new("L", photo.size, 255)
        ImageDraw.Draw(alpha).ellipse(region, fill=0)
        photo.putalpha(alpha)
    photo.save(host.base / "input" / "example.png")


def settle(page: Page) -> None:
    """Until the page has drawn its last change and asked the server for what it shows under nodes."""
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(1500)


def graph_picture(page: Page) -> Image.Image:
    """The whole graph, without the menus around it."""
    left, top, *_ = GRAPH
    width, height = page.evaluate(FIT, [*GRAPH])
    settle(page)
    clip = {"x": left - 10, "y": top - 10, "width": width + 20, "height": height + 20}
    return picture_of(page.screenshot(clip=clip))


def node_picture(page: Page, kind: str) -> Image.Image:
    """One node at its own size, in Nodes 2.0."""
    page.evaluate("kind => app.canvas.centerOnNode(app.graph._nodes.find((n) => n.type === kind))", kind)
    number = page.evaluate("kind => String(app.graph._nodes.find((n) => n.type === kind).id)", kind)
    settle(page)
    return picture_of(page.locator(f'[data-node-id="{number}"]').screenshot())


def picture_of(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


def captioned(graph: Image.Image, name: str) -> Image.Image:
    graph = graph.copy()
    graph.thumbnail((EDGE, EDGE))
    result = Image.new("RGB", (graph.width, graph.height + 34), (24, 24, 27))
    result.paste(graph)
    text = f"The graph: needs {NEEDS[name]}"
    ImageDraw.Draw(result).text((12, graph.height + 7), text, fill=(235, 235, 235), font=ImageFont.load_default(18))
    return result


def save(picture: Image.Image, path: Path, longest: int = 1200) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = picture.copy()
    picture.thumbnail((longest, longest))
    picture.save(path, quality=80)


def all_templates(page: Page, host: Host, look: str, folder: Path) -> None:
    for path in sorted((ROOT / "workflows").glob("*.json")):
        name = path.stem.split("-", 3)[3]
        put_photo(host, REGION if name == "region-only" else None)
        load_workflow(page, path)
        if name in ("quick-start", "region-only"):
            press_run(page)
            shown_picture(page, SAVE)
        graph = graph_picture(page)
        save(graph, folder / "templates" / f"{path.stem}, {look}.webp")
        if name in NEEDS and look == NODES_2:
            save(captioned(graph, name), folder / "workflows" / f"{path.stem}.jpg")
        if name == "region-only" and look == NODES_2:
            save(graph, folder / "docs" / "comfyui-region-only.webp")
            for kind in (UPSCALE, COMPARE):
                save(node_picture(page, kind), folder / "web" / "docs" / "images" / f"{kind}.jpg", HELP_EDGE)
