"""What a person does in ComfyUI's page, for tests and for pictures of it. Tests without playwright are skipped."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from comfyui_host import Host
from limits import PAGE_SECONDS

playwright = pytest.importorskip("playwright.sync_api")
Browser, Locator, Page = playwright.Browser, playwright.Locator, playwright.Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM_PATH") or next(filter(None, map(shutil.which, NAMES)), None)
WAIT = PAGE_SECONDS * 1000
TRY = WAIT // 10  # a click that a busy page lost is made again after this
CLASSIC, NODES_2 = "classic", "Nodes 2.0"
LOOKS = (CLASSIC, NODES_2)
RECTANGLES = {
    CLASSIC: """() => app.graph._nodes.map((node) => {
        const [x, y, width, height] = node.boundingRect ?? node.getBounding()
        return { type: node.type, x, y, width, height }
    })""",
    NODES_2: """() => app.graph._nodes.map((node) => {
        const { x, y, width, height } = document.querySelector(`[data-node-id="${node.id}"]`).getBoundingClientRect()
        return { type: node.type, x, y, width, height }
    })""",
}


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Chromium without a window. A test that needs one is skipped if there is none."""
    if CHROMIUM is None:
        pytest.skip("no browser: install Chromium, or name one with CHROMIUM_PATH")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


def open_page(page: Page, host: Host) -> None:
    page.goto(f"http://127.0.0.1:{host.port}/", timeout=WAIT)
    page.wait_for_selector("#graph-canvas")
    # The page loads a graph of its own last, and names it as active once all of it is there.
    page.wait_for_function("() => window.app?.extensionManager?.workflow?.activeWorkflow?.isLoaded")
    page.locator(".p-blockui-mask").wait_for(state="hidden")
    page.evaluate("() => app.graph.clear()")


def open_template(page: Page, name: str, kind: str) -> None:
    """Choose a template in the page's list, until a node of that kind is there: a busy page may lose a click."""
    ours, card = page.get_by_text("onestep_sr", exact=True), page.get_by_text(name, exact=True)
    is_open = "kind => app.graph._nodes.some((n) => n.type === kind)"
    for _ in range(WAIT // TRY):
        with suppress(playwright.Error):
            if not page.evaluate(is_open, kind):
                if not card.is_visible():
                    if not ours.is_visible():
                        page.get_by_role("button", name="Templates").first.click(timeout=TRY)
                    ours.click(timeout=TRY)
                card.click(timeout=TRY)
            page.wait_for_function(is_open, arg=kind, timeout=TRY)
            return
    raise AssertionError(f"{name} did not open")


def load_workflow(page: Page, path: Path) -> None:
    page.evaluate("workflow => app.loadGraphData(workflow)", json.loads(path.read_text()))


def set_widget(page: Page, kind: str, name: str, value: object) -> None:
    page.evaluate(
        """([kind, name, value]) => {
            const widget = app.graph._nodes.find((n) => n.type === kind).widgets.find((w) => w.name === name)
            widget.value = value
            widget.callback?.(value)
        }""",
        [kind, name, value],
    )


def press_run(page: Page) -> None:
    page.get_by_role("button", name="Run", exact=True).first.click()


def shown_picture(page: Page, kind: str) -> tuple[int, int]:
    """The size of the picture on the first node of that kind, once it is there."""
    page.wait_for_function(
        """kind => {
            const node = app.graph._nodes.find((n) => n.type === kind)
            const elements = document.querySelectorAll(`[data-node-id="${node.id}"] img`)
            window.shown = [...(node.imgs ?? []), ...elements].find((image) => image.naturalWidth)
            return window.shown
        }""",
        arg=kind,
    )
    return tuple(page.evaluate("() => [window.shown.naturalWidth, window.shown.naturalHeight]"))


def settled_box(page: Page, element: Locator) -> dict[str, float]:
    """Where the element is, once it stays there: the page moves it one frame later than its node."""
    return settled(page, element.bounding_box)


def settled(page: Page, measure: Callable[[], Any]) -> Any:
    """What is measured, once it stays the same for two frames."""
    before = None
    while (found := measure()) != before or found is None:
        before = found
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return found
