"""What a person does in the page: a real browser on real ComfyUI servers."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest
from comfyui_host import HOW_TO_GET_ONE, Host, installed_hosts, start, stop
from comfyui_page import (
    CLASSIC,
    LOOKS,
    NODES_2,
    RECTANGLES,
    TRY,
    WAIT,
    Browser,
    Page,
    load_workflow,
    open_page,
    open_template,
    playwright,
    press_run,
    running_browser,
    set_widget,
    settled,
    settled_box,
    shown_picture,
)
from node_texts import LANGUAGES
from PIL import Image
from places import PHOTOS, ROOT, template
from publisher import CONTENT, Publisher, serve

HOSTS = installed_hosts()
expect = playwright.expect
expect.set_options(timeout=WAIT)
OURS = "/extensions/onestep_sr/"
COMPARE = "OneStepSRCompareImages"
# Nodes whose files are missing grow once the server has answered.
OFFERED = """() => app.graph._nodes.every((node) => node.onestepDownloads?.shown !== "")"""

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def publisher() -> Iterator[Publisher]:
    """Stands for Hugging Face."""
    state = Publisher()
    with serve(state) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", address)
        yield state


@pytest.fixture(scope="module", params=HOSTS or [None], ids=lambda folder: folder.name if folder else "none")
def host(
    request: pytest.FixtureRequest, publisher: Publisher, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    if request.param is None:
        pytest.skip(HOW_TO_GET_ONE)
    base = tmp_path_factory.mktemp("base")
    (base / "input").mkdir()
    shutil.copy(PHOTOS / "grass.png", base / "input" / "example.png")
    noise = np.random.default_rng(0).integers(0, 256, (768, 768, 3), dtype=np.uint8)
    Image.fromarray(noise).save(base / "input" / "large.png")
    running = start(request.param, base)
    running.post("/api/settings", {"Comfy.TutorialCompleted": True})
    yield running
    stop(running)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as running:
        yield running


@pytest.fixture
def look(request: pytest.FixtureRequest) -> str:
    """One of LOOKS: how the page draws nodes, on its canvas or as elements."""
    return getattr(request, "param", CLASSIC)


@pytest.fixture
def page(host: Host, browser: Browser, look: str) -> Iterator[Page]:
    """ComfyUI's page with an empty graph; afterwards none of our files may have complained."""
    host.post("/api/settings", {"Comfy.VueNodes.Enabled": look == NODES_2})
    opened = browser.new_page(viewport={"width": 1600, "height": 900})
    opened.set_default_timeout(WAIT)
    complaints: list[str] = []

    def on_message(message: playwright.ConsoleMessage) -> None:
        source = message.location.get("url", "") + message.text
        # The page asks for a help page in its language first, and takes the one without if there is none.
        if message.type in ("error", "warning") and OURS in source and not re.search(r"/docs/\w+/\w+\.md", source):
            complaints.append(message.text)

    opened.on("console", on_message)
    opened.on("pageerror", lambda error: complaints.append(error.stack) if OURS in (error.stack or "") else None)
    open_page(opened, host)
    yield opened
    opened.close()
    assert not complaints


NO_PICTURE = """kind => {
    const node = app.graph._nodes.find((each) => each.type === kind)
    return !node.imgs?.length && !document.querySelector(`[data-node-id="${node.id}"] img`)
}"""


@pytest.mark.parametrize("look", LOOKS, indirect=True)
def test_the_template_is_found_run_and_gives_a_picture(page: Page, look: str) -> None:
    open_template(page, template("quick-start").stem, "OneStepSRUpscaleImage")
    width, height = Image.open(PHOTOS / "grass.png").size
    expect(page.locator(".onestep-sr-plan")).to_contain_text(f"{4 * width} x {4 * height} px: ")
    set_widget(page, "OneStepSRUpscaleImage", "tile", 128)
    set_widget(page, "OneStepSRUpscaleImage", "seed", LOOKS.index(look))  # the server keeps the other look's result
    expect(page.locator(".onestep-sr-plan")).to_contain_text("of 128 x 128 px")
    page.evaluate(
        """async () => {
            const { api } = await import("/scripts/api.js")
            window.steps = []
            api.addEventListener("progress", ({ detail }) => window.steps.push(detail.value / detail.max))
        }"""
    )
    press_run(page)
    assert shown_picture(page, "SaveImage") == (4 * width, 4 * height)
    steps = page.evaluate("() => window.steps")
    assert len(steps) > 4 and steps == sorted(steps) and steps[-1] == 1
    expect(page.locator(".onestep-sr-plan")).to_contain_text("about ")
    page.wait_for_function(NO_PICTURE, arg="OneStepSRUpscaleImage")  # not the last tile's preview


def test_every_workflow_opens_whole(page: Page) -> None:
    # A node that offers missing files is taller than the one that is saved.
    page.route("**/onestep_sr/downloads", lambda route: route.fulfill(json={"files": [], "by_hand": []}))
    for path in sorted((ROOT / "workflows").glob("*.json")):
        load_workflow(page, path)
        nodes = page.evaluate(
            """() => app.graph._nodes.map((node) => ({
                type: node.type, known: node.type in LiteGraph.registered_node_types, least: [...node.computeSize()],
            }))"""
        )
        saved = json.loads(path.read_text())["nodes"]
        assert sorted(n["type"] for n in nodes) == sorted(n["type"] for n in saved)
        assert all(n["known"] for n in nodes)
        crowded = [n for n in saved for m in nodes if m["type"] == n["type"] and n["size"][1] < m["least"][1] - 1]
        assert not crowded, path.stem


@pytest.mark.parametrize("look", LOOKS, indirect=True)
def test_the_nodes_of_a_template_do_not_lie_on_each_other(page: Page, look: str) -> None:
    for path in sorted((ROOT / "workflows").glob("*.json")):
        load_workflow(page, path)
        if look == NODES_2:
            count = len(json.loads(path.read_text())["nodes"])
            expect(page.locator("[data-node-id]")).to_have_count(count)
        page.wait_for_function(OFFERED)
        boxes = settled(page, lambda: page.evaluate(RECTANGLES[look]))
        for i, one in enumerate(boxes):
            for other in boxes[:i]:
                assert not overlap(one, other), (path.stem, one, other)


def overlap(one: dict, other: dict) -> bool:
    sides = (("x", "width"), ("y", "height"))
    return all(one[at] < other[at] + other[size] and other[at] < one[at] + one[size] for at, size in sides)


# Puts a node between Load Image and Upscale Image, after those that are there.
INSERT = """([kind, widgets]) => {
    const upscale = app.graph._nodes.find((node) => node.type === "OneStepSRUpscaleImage")
    const slot = upscale.inputs.findIndex((input) => input.name === "image")
    const [before, node] = [upscale.getInputNode(slot), LiteGraph.createNode(kind)]
    app.graph.add(node)
    for (const widget of node.widgets) widget.value = widgets[widget.name] ?? widget.value
    before.connect(0, node, 0)
    node.connect(0, upscale, slot)
}"""
LINK = """([kind, name]) => {
    const [node, value] = [app.graph._nodes.find((n) => n.type === kind), LiteGraph.createNode("PrimitiveFloat")]
    app.graph.add(value)
    value.connect(0, node, node.inputs.findIndex((input) => input.name === name))
}"""


def test_the_plan_is_right_or_silent(page: Page) -> None:
    load_workflow(page, template("quick-start"))
    plan, (width, height) = page.locator(".onestep-sr-plan"), Image.open(PHOTOS / "grass.png").size
    expect(plan).to_contain_text(f"{4 * width} x {4 * height} px: ")
    page.evaluate(INSERT, ["ImageScaleBy", {"scale_by": 0.5}])
    half = f"{4 * round(width / 2)} x {4 * round(height / 2)} px: "
    expect(plan).to_contain_text(half)
    page.evaluate(INSERT, ["RepeatImageBatch", {"amount": 3}])
    expect(plan).to_contain_text(f"3 images, each {half}")
    page.evaluate(LINK, ["ImageScaleBy", "scale_by"])  # its value is not known before the run
    expect(plan).to_have_text("")
    set_widget(page, "OneStepSRLoadModel", "model", "gone.pth")
    expect(plan).to_have_text("gone.pth is not in models/onestep_sr: choose another model.")
    load_workflow(page, template("quick-start"))
    expect(plan).to_contain_text(f"{4 * width} x {4 * height} px: ")
    page.evaluate(LINK, ["OneStepSRUpscaleImage", "upscale_by"])
    expect(plan).to_have_text("")


SHOWN = {
    CLASSIC: """([kind, asked, wanted]) => {
        const { widgets } = app.graph._nodes.find((node) => node.type === kind)
        const shown = widgets.filter((widget) => !widget.hidden).map((widget) => widget.label ?? widget.name)
        return String(asked.filter((name) => shown.includes(name))) === String(wanted)
    }""",
    NODES_2: """([kind, asked, wanted]) => {
        const { id } = app.graph._nodes.find((node) => node.type === kind)
        const shown = document.querySelector(`[data-node-id="${id}"]`)?.innerText.split("\\n") ?? []
        return shown.length > 4 && String(asked.filter((name) => shown.includes(name))) === String(wanted)
    }""",
}


@pytest.mark.parametrize("look", LOOKS, indirect=True)
def test_inputs_without_influence_are_hidden(page: Page, look: str) -> None:
    load, upscale = "OneStepSRLoadModel", "OneStepSRUpscaleImage"
    load_workflow(page, template("quick-start"))
    sizes = ("upscale_by", "pixels", "megapixels")
    for size, wanted in {"factor": "upscale_by", "width": "pixels", "megapixels": "megapixels", "fit 4k": None}.items():
        set_widget(page, upscale, "size", size)
        page.wait_for_function(SHOWN[look], arg=[upscale, sizes, [wanted] if wanted else []])
    folded = "kind => app.graph._nodes.find((n) => n.type === kind).widgets.map((w) => [w.name, !!w.options.advanced])"
    is_advanced = dict(page.evaluate(folded, upscale))
    assert is_advanced["seed"] == is_advanced["control_after_generate"]
    # The bundled model does not start from noise, and is one file with one recipe.
    page.wait_for_function(SHOWN[look], arg=[upscale, ["seed", "control after generate"], []])
    asked = ["model", "autoencoder", "recipe"]
    for model, shown in (("bundled", ["model"]), ("TAD-SR.pth", asked), ("bundled", ["model"])):
        set_widget(page, load, "model", model)
        page.wait_for_function(SHOWN[look], arg=[load, asked, shown])


def test_blueprints_are_offered_and_run(host: Host, page: Page) -> None:
    offered = {entry["name"] for entry in host.get_json("/global_subgraphs").values()}
    paths = sorted((ROOT / "subgraphs").glob("*.json"))
    assert offered >= {path.stem for path in paths}
    for path in paths:
        load_workflow(page, path)
        inside = page.evaluate("() => app.graph._nodes[0].subgraph.nodes.map((n) => n.type)")
        known = page.evaluate("types => types.every((type) => type in LiteGraph.registered_node_types)", inside)
        assert known, path.stem
    load_workflow(page, ROOT / "subgraphs" / "Upscale a Region (One-Step SR).json")
    page.evaluate(
        """() => {
            const [load, save] = ["LoadImage", "SaveImage"].map((kind) => LiteGraph.createNode(kind))
            const [blueprint] = app.graph._nodes
            for (const node of [load, save]) app.graph.add(node)
            load.connect(0, blueprint, 0)
            load.connect(1, blueprint, 1)
            blueprint.connect(0, save, 0)
            blueprint.widgets.find((widget) => widget.name === "upscale_by").value = 2
        }"""
    )
    press_run(page)
    width, height = Image.open(PHOTOS / "grass.png").size
    assert shown_picture(page, "SaveImage") == (2 * width, 2 * height)


def test_nodes_come_from_the_search_box_and_by_dragging(page: Page) -> None:
    search = page.get_by_placeholder(re.compile("Search Nodes|Add a node"))
    for _ in range(10):  # a busy page may miss a double click
        page.mouse.dblclick(900, 550)
        with suppress(playwright.TimeoutError):
            search.wait_for(timeout=3000)
            break
    search.fill("Upscale Image (One")
    page.get_by_role("option", name="Upscale Image (One-Step SR)").first.wait_for()
    page.keyboard.press("Enter")
    page.wait_for_function("() => app.graph._nodes.some((n) => n.type === 'OneStepSRUpscaleImage')")
    page.keyboard.press("Escape")
    leaf = find_in_library(page, "Match Colour (One-Step SR)")
    leaf.drag_to(page.locator("#graph-canvas"), target_position={"x": 900, "y": 200})
    page.wait_for_function("() => app.graph._nodes.some((n) => n.type === 'OneStepSRMatchColor')")


def find_in_library(page: Page, title: str) -> playwright.Locator:
    page.get_by_role("button", name="Node Library").first.click()
    page.get_by_placeholder(re.compile(r"^Search( Nodes)?\.*$")).last.fill(title)
    leaf = page.locator(".tree-leaf, div[role=treeitem]").filter(has_text=title)
    leaf.wait_for()
    return leaf


def test_the_help_button_opens_the_page_with_its_picture(page: Page) -> None:
    page.evaluate(
        """kind => {
            const node = LiteGraph.createNode(kind)
            node.pos = [300, 300]
            app.graph.add(node)
            app.canvas.selectItems([node])
        }""",
        COMPARE,
    )
    page.get_by_test_id("info-button").click()
    page.get_by_text("Shows two images in one frame").wait_for()
    page.wait_for_function(
        """() => [...document.images].some(
            (image) => image.src.endsWith("docs/images/OneStepSRCompareImages.jpg") && image.naturalWidth
        )"""
    )


def test_the_languages_of_the_page_reach_the_nodes(host: Host, page: Page) -> None:
    offered = page.evaluate("() => app.ui.settings.settingsLookup['Comfy.Locale'].options.map((o) => o.value ?? o)")
    for language in {*LANGUAGES} & {*offered} - {"en"}:
        texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text())["OneStepSRUpscaleImage"]
        host.post("/api/settings", {"Comfy.Locale": language})
        open_page(page, host)
        shown = page.evaluate(
            """() => {
                const node = LiteGraph.createNode("OneStepSRUpscaleImage")
                app.graph.add(node)
                const widget = node.widgets.find((w) => w.name === "upscale_by")
                return [node.title, widget.label]
            }"""
        )
        assert shown == [texts["display_name"], texts["inputs"]["upscale_by"]["name"]]
    host.post("/api/settings", {"Comfy.Locale": "en"})


def test_cancel_stops_a_long_run_within_a_tile_or_two(page: Page) -> None:
    load_workflow(page, template("quick-start"))
    set_widget(page, "LoadImage", "image", "large.png")
    set_widget(page, "OneStepSRUpscaleImage", "tile", 256)
    page.evaluate(
        """async () => {
            const { api } = await import("/scripts/api.js")
            const seen = (window.seen = { done: 0, total: 0, ended: null })
            api.addEventListener("progress", ({ detail }) => {
                seen.done = detail.value
                seen.total = detail.max
            })
            api.addEventListener("execution_interrupted", () => (seen.ended = "interrupted"))
            api.addEventListener("execution_success", () => (seen.ended = "success"))
        }"""
    )
    press_run(page)
    page.wait_for_function("() => window.seen.done >= 3")
    page.get_by_role("button", name="Cancel current run").click()
    at = page.evaluate("() => window.seen.done")
    page.wait_for_function("() => window.seen.ended")
    seen = page.evaluate("() => window.seen")
    assert seen["ended"] == "interrupted"
    assert seen["total"] > 200 and seen["done"] - at <= 10  # what runs while the click travels


@pytest.mark.parametrize("look", LOOKS, indirect=True)
@pytest.mark.parametrize("panel", [False, True], ids=["", "beside the panel of the selected node"])
def test_the_comparison_is_moved_by_mouse_and_keys(host: Host, page: Page, panel: bool) -> None:
    host.post("/api/settings", {"Comfy.RightSidePanel.IsOpen": panel})
    open_page(page, host)
    load_workflow(page, template("region-only"))
    press_run(page)
    frame = page.locator(".onestep-sr-compare.filled")
    frame.wait_for()
    slider = frame.locator("input[type=range]")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.onestep-sr-compare img')].every((image) => image.naturalWidth)"
    )
    clip = "element => getComputedStyle(element).clipPath"
    assert "50%" in frame.locator("img.after").evaluate(clip)
    slider.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert "52%" in frame.locator("img.after").evaluate(clip)
    page.keyboard.press("Home")
    assert "inset(0px)" in frame.locator("img.after").evaluate(clip).replace("inset(0px 0px 0px 0%)", "inset(0px)")
    page.evaluate("kind => app.canvas.centerOnNode(app.graph._nodes.find((n) => n.type === kind))", COMPARE)
    box = settled_box(page, slider)
    middle = box["y"] + box["height"] / 2
    page.mouse.click(box["x"] + 0.75 * box["width"], middle)
    expect(slider).to_have_value(re.compile(r"^7[456](\.5)?$"))
    for _ in range(10):  # a busy page may lose a drag
        page.mouse.move(box["x"] + float(slider.input_value()) / 100 * box["width"], middle)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.25 * box["width"], middle, steps=5)
        page.mouse.up()
        with suppress(AssertionError):
            expect(slider).to_have_value(re.compile(r"^2[456](\.5)?$"), timeout=TRY)
            break
    expect(slider).to_have_value(re.compile(r"^2[456](\.5)?$"))
    assert settled_box(page, slider) == box  # the node does not move along
    saved = page.evaluate("() => app.graph.serialize().nodes.find((n) => n.type === 'OneStepSRCompareImages')")
    assert not saved.get("widgets_values")


def test_missing_weights_are_offered_and_fetched_on_a_click(host: Host, page: Page, publisher: Publisher) -> None:
    publisher.requests, publisher.stall = [], threading.Event()
    page.evaluate(
        """() => {
            const node = LiteGraph.createNode("OneStepSRApplyLoRA")
            app.graph.add(node)
            node.widgets.find((widget) => widget.name === "lora").value = "HYPIR_sd2.pth"
            window.heights = [node.size[1]]
        }"""
    )
    view = page.locator(".onestep-sr-downloads")
    expect(view).to_contain_text("HYPIR_sd2.pth is missing")
    for words in ("NOT FOR COMMERCIAL USE", f"{publisher.port}/lxq007/HYPIR/", str(host.base / "models" / "loras")):
        expect(view).to_contain_text(words)
    page.wait_for_timeout(1500)
    assert not publisher.requests, "nothing is asked for before the click"
    view.get_by_role("button", name="Download").click()
    expect(view).to_contain_text(re.compile("[2-4] of 5 MB"))
    view.get_by_role("button", name="Cancel").click()
    expect(view).to_contain_text("cancelling")
    publisher.stall.set()
    expect(view).to_contain_text("The download was cancelled.")
    publisher.stall, publisher.requests = None, []
    view.get_by_role("button", name="Download").click()
    expect(view).to_have_count(0)
    assert any(asked and asked != "bytes=0-" for *_, asked, _ in publisher.requests), "it goes on where it stopped"
    file = host.base / "models" / "loras" / "HYPIR_sd2.pth"
    assert file.read_bytes() == CONTENT
    page.wait_for_function(
        """() => app.graph._nodes[0].widgets.find((w) => w.name === "lora").options.values.includes("HYPIR_sd2.pth")"""
    )
    saved = page.evaluate("() => app.graph.serialize().nodes[0]")
    assert saved["widgets_values"][:2] == ["HYPIR_sd2.pth", "auto"] and len(saved["widgets_values"]) == 6
    file.unlink()


def test_other_pages_cannot_start_a_download(host: Host, publisher: Publisher) -> None:
    publisher.requests = []
    body = json.dumps({"widgets": {"lora": "HYPIR_sd2.pth"}, "start": "HYPIR_sd2.pth"}).encode()
    for headers in ({"Content-Type": "application/json", "Origin": "http://other.org"}, {"Content-Type": "text/plain"}):
        request = urllib.request.Request(f"http://127.0.0.1:{host.port}/onestep_sr/downloads", body, headers)
        with pytest.raises(urllib.error.HTTPError, match=r"40[03]"):
            urllib.request.urlopen(request, timeout=WAIT / 1000)
    time.sleep(0.5)
    assert not publisher.requests
