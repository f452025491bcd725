"""Pictures of ComfyUI's page with this pack, from a real server and a real browser.

    PYTHONPATH=tests python benchmarks/screenshots.py screenshots

Needs a ComfyUI and Chromium, as the browser tests do (CONTRIBUTING.md). `screenshots/templates` gets every template in
both looks. The other folders are those of the repository, and `cp -r screenshots/{docs,web,workflows} .` replaces its
pictures: for the docs, for the help pages, and for templates whose results need files that are not part of the pack.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from comfyui_host import Host, installed_hosts, interpreter, start, stop
from comfyui_page import (
    CHROMIUM,
    LOOKS,
    NODES_2,
    WAIT,
    Page,
    load_workflow,
    open_page,
    playwright,
    press_run,
    set_widget,
    shown_picture,
)
from PIL import Image, ImageDraw, ImageFont
from places import HOST_SCRIPTS, NAMED_IN_WORKFLOWS, ROOT, template

VIEW = {"width": 1800, "height": 1240}
GRAPH = (110, 110, 1520, 1020)  # where the page has no menus: left, top, width, height
UPSCALE, COMPARE, SAVE = "OneStepSRUpscaleImage", "OneStepSRCompareImages", "SaveImage"
TEMPLATE_EDGE, HELP_EDGE, DOCS_EDGE = 640, 560, 1000  # longest sides
IN_HELP = ("tsd-sr", "tsd-sr-stock-parts", "tad-seesr")  # templates that show where the nodes for LoRAs go
WRITE_CLIP = HOST_SCRIPTS / "write_clip.py"
HELP = Path("web", "docs", "images")
REGION = (50, 20, 130, 130)  # of the face in demo/photo.png: left, top, right, bottom
# What a template's result needs, for those whose picture is their graph.
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
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}
FIT = """([left, top, width, height]) => {
    const boxes = app.graph._nodes.map((node) => node.boundingRect ?? node.getBounding())
    const x = Math.min(...boxes.map((box) => box[0])), y = Math.min(...boxes.map((box) => box[1]))
    const right = Math.max(...boxes.map((box) => box[0] + box[2]))
    const bottom = Math.max(...boxes.map((box) => box[1] + box[3])) + 40
    const scale = Math.min(width / (right - x), height / (bottom - y), 1)
    app.canvas.ds.scale = scale
    app.canvas.ds.offset = [left / scale - x, top / scale - y]
    app.canvas.setDirty(true, true)
    return [scale * (right - x), scale * (bottom - y)]
}"""
REPEAT = """count => {
    const [load] = app.graph._nodes.filter((node) => node.type === "LoadImage")
    const [upscale] = app.graph._nodes.filter((node) => node.type === "OneStepSRUpscaleImage")
    const repeat = LiteGraph.createNode("RepeatImageBatch")
    repeat.pos = [upscale.pos[0], upscale.pos[1] - 120]
    app.graph.add(repeat)
    repeat.widgets.find((widget) => widget.name === "amount").value = count
    load.connect(0, repeat, 0)
    repeat.connect(0, upscale, upscale.inputs.findIndex((input) => input.name === "image"))
}"""
ALONE = """kind => {
    app.graph.clear()
    const node = LiteGraph.createNode(kind)
    node.pos = [300, 200]
    app.graph.add(node)
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [0, 0]
}"""


@contextmanager
def running_host() -> Iterator[Host]:
    """The newest installed ComfyUI, with empty files where the templates expect weights."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        for file in NAMED_IN_WORKFLOWS:
            (base / "models" / file).parent.mkdir(parents=True, exist_ok=True)
            (base / "models" / file).touch()
        comfyui = installed_hosts()[-1]
        (base / "input").mkdir()
        put_photo(base)
        subprocess.run([str(interpreter(comfyui)), str(WRITE_CLIP), str(base / "input" / "example.mp4")], check=True)
        host = start(comfyui, base)
        try:
            host.post("/api/settings", SETTINGS)
            yield host
        finally:
            stop(host)


@contextmanager
def open_look(host: Host, look: str) -> Iterator[Page]:
    """The page with nodes in that look, at two pixels of the picture for one of the page."""
    host.post("/api/settings", {"Comfy.VueNodes.Enabled": look == NODES_2})
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport=VIEW, device_scale_factor=2)
        page.set_default_timeout(WAIT)
        # What a node offers to download would be shown with a folder of this machine.
        nothing = {"files": [], "by_hand": []}
        page.context.route("**/onestep_sr/downloads", lambda route: route.fulfill(json=nothing))
        open_page(page, host)
        yield page
        browser.close()


def put_photo(base: Path, region: tuple[int, int, int, int] | None = None) -> None:
    """The demo's photo as what Load Image starts with, with a region as the mask editor paints it: transparent."""
    photo = Image.open(ROOT / "demo" / "photo.png").convert("RGBA" if region else "RGB")
    if region:
        alpha = Image.new("L", photo.size, 255)
        ImageDraw.Draw(alpha).ellipse(region, fill=0)
        photo.putalpha(alpha)
    photo.save(base / "input" / "example.png")


def settle(page: Page) -> None:
    """Wait until the page has drawn its last change and shows what the server answers."""
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(2000)


def graph_picture(page: Page) -> Image.Image:
    """The whole graph, without the menus around it."""
    left, top, *_ = GRAPH
    width, height = page.evaluate(FIT, [*GRAPH])
    settle(page)
    return clipped(page, left - 10, top - 10, width + 20, height + 20)


def clipped(page: Page, x: float, y: float, width: float, height: float) -> Image.Image:
    return picture_of(page.screenshot(clip={"x": x, "y": y, "width": width, "height": height}))


def node_picture(page: Page, kind: str) -> Image.Image:
    """The first node of that kind, in Nodes 2.0."""
    number = page.evaluate("kind => String(app.graph._nodes.find((n) => n.type === kind).id)", kind)
    settle(page)
    return picture_of(page.locator(f'[data-node-id="{number}"]').first.screenshot())


def picture_of(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


def captioned(graph: Image.Image, name: str) -> Image.Image:
    graph = graph.copy()
    graph.thumbnail((TEMPLATE_EDGE, TEMPLATE_EDGE))
    result = Image.new("RGB", (graph.width, graph.height + 34), (24, 24, 27))
    result.paste(graph)
    text = f"The graph: needs {NEEDS[name]}"
    ImageDraw.Draw(result).text((12, graph.height + 7), text, fill=(235, 235, 235), font=ImageFont.load_default(18))
    return result


def save(picture: Image.Image, path: Path, longest: int = DOCS_EDGE) -> None:
    """At most that long; WebP or JPEG, as the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = picture.copy()
    picture.thumbnail((longest, longest))
    picture.save(path, quality=80)


def templates(host: Host, page: Page, look: str, folder: Path) -> None:
    for path in sorted((ROOT / "workflows").glob("*.json")):
        name = path.stem.split("-", 3)[3]
        page.unroute_all()
        if name in NEEDS:  # the files are empty, so there is no estimate
            page.route("**/onestep_sr/plan", lambda route: route.fulfill(status=404))
        put_photo(host.base, REGION if name == "region-only" else None)
        load_workflow(page, path)
        if name in ("quick-start", "region-only"):
            press_run(page)
            shown_picture(page, SAVE)
            page.get_by_text("Job completed").wait_for(state="hidden")
        graph = graph_picture(page)
        save(graph, folder / "templates" / f"{path.stem}, {look}.webp", 1600)
        if look == NODES_2 and name in NEEDS:
            save(captioned(graph, name), folder / "workflows" / f"{path.stem}.jpg", TEMPLATE_EDGE + 34)
        if look == NODES_2 and name in IN_HELP:
            save(graph, folder / HELP / f"{name}.jpg")
        if look == NODES_2 and name == "region-only":
            save(graph, folder / "docs" / "comfyui-region-only.webp")
            save(node_picture(page, COMPARE), folder / "docs" / "comfyui-compare.webp", HELP_EDGE)
            save(node_picture(page, COMPARE), folder / HELP / f"{COMPARE}.jpg", HELP_EDGE)
        if look == NODES_2 and name == "quick-start":
            save(graph, folder / "docs" / "comfyui-graph.webp")
            save(node_picture(page, UPSCALE), folder / HELP / f"{UPSCALE}.jpg", 720)


def help_pictures(host: Host, page: Page, folder: Path) -> None:
    """The nodes that show no picture of their own, alone."""
    for kind in sorted(kind for kind in host.object_info if kind.startswith("OneStepSR")):
        if kind in (UPSCALE, COMPARE):
            continue
        page.evaluate(ALONE, kind)
        if kind == "OneStepSRPrompt":
            set_widget(page, kind, "embeddings", "from text")
        save(node_picture(page, kind), folder / HELP / f"{kind}.jpg", HELP_EDGE)


def search_picture(page: Page, path: Path) -> None:
    page.evaluate("() => app.graph.clear()")
    search = page.get_by_placeholder(re.compile("Search Nodes|Add a node"))
    page.mouse.dblclick(900, 620)
    search.fill("4x")
    settle(page)
    box = search.bounding_box()
    save(clipped(page, box["x"] - 30, box["y"] - 30, 1180, 560), path)
    page.keyboard.press("Escape")


def sizes_picture(page: Page, path: Path) -> None:
    """The choices of the size, open."""
    page.evaluate(ALONE, UPSCALE)
    settle(page)
    page.get_by_role("combobox", name="size", exact=True).click()
    settle(page)
    save(clipped(page, 290, 160, 420, 640), path, HELP_EDGE)
    page.keyboard.press("Escape")


def plan_picture(host: Host, page: Page, path: Path) -> None:
    """A batch so large that its memory is nearly all that is free here, which makes the line amber."""
    put_photo(host.base)
    load_workflow(page, template("quick-start"))
    page.evaluate(REPEAT, tight_count(host))
    set_widget(page, UPSCALE, "upscale_by", 8)
    page.evaluate(FIT, [*GRAPH])
    line = page.locator(".onestep-sr-plan")
    playwright.expect(line).to_have_attribute("style", re.compile(r"rgb\(221, 170, 0\)"), timeout=WAIT)
    save(node_picture(page, UPSCALE), path, 720)


def tight_count(host: Host) -> int:
    """How many images of the demo's size, eight times as large, are tight in this machine's memory."""
    model = {"model": "bundled", "autoencoder": "auto", "recipe": "auto"}
    question = {"node": "OneStepSRLoadModel", "model": model, "width": 176, "height": 176, "upscale_by": 8}
    question |= {"tile": 0, "overlap": -1}
    counts = range(50, 4096, 50)
    return next(n for n in counts if host.post("/onestep_sr/plan", question | {"count": n})["level"] == "tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    with running_host() as host:
        for look in LOOKS:
            with open_look(host, look) as page:
                templates(host, page, look, folder)
        with open_look(host, NODES_2) as page:
            help_pictures(host, page, folder)
            search_picture(page, folder / "docs" / "comfyui-search.webp")
            sizes_picture(page, folder / "docs" / "comfyui-sizes.webp")
            plan_picture(host, page, folder / "docs" / "comfyui-plan.webp")


if __name__ == "__main__":
    main()
