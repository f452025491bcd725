"""What a person does in Extras: a real browser on real Automatic1111, Forge, Forge Neo and reForge servers."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from comfyui_page import WAIT, Browser, Page, running_browser
from forge_host import HOSTS
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.families.loading import load
from onestep_sr.sr_models.files.read import read_picture
from PIL import Image
from places import PHOTOS, ROOT

PHOTO = PHOTOS / "grass.png"
UPSCALER = "One-Step SR x4"
SECTION = "#extras_onestep_sr"
TOLERANCE = 3  # of 255: the host's precision may be bf16

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as running:
        yield running


@pytest.fixture(scope="module", params=HOSTS)
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    host = HOSTS[request.param]
    if not host.is_installed:
        pytest.skip(host.how_to_get_it)
    data = tmp_path_factory.mktemp("data")
    for folder in ("extensions", "checkpoints"):
        (data / folder).mkdir()
    (data / "extensions" / "onestep_sr").symlink_to(ROOT, target_is_directory=True)
    with host.page(data) as running:
        yield running


@pytest.fixture
def extras(browser: Browser, address: str) -> Iterator[Page]:
    """Extras with the photo in it."""
    page = browser.new_page(viewport={"width": 1400, "height": 2400})
    page.set_default_timeout(WAIT)
    page.goto(address)
    page.locator("#tabs > .tab-nav button, #tabs button[role=tab]").filter(has_text="Extras").first.click()
    page.locator("#extras_image input[type=file]").set_input_files(PHOTO)
    page.wait_for_selector("#extras_image img")
    yield page
    page.close()


def choose(page: Page, field: str, choice: str) -> None:
    """In a list of gradio's."""
    page.locator(f"{field} input").first.click()
    page.locator("ul[role=listbox] li, ul.options li").filter(has_text=choice).first.click()


def generated(page: Page) -> np.ndarray:
    """The result in the gallery, loaded as the page does."""
    page.locator("#extras_generate").first.click()
    shown = page.wait_for_function(
        """() => [...document.querySelectorAll("#extras_gallery img, #extras_results img")]
            .find((image) => image.naturalWidth && image.src.startsWith("http"))?.src"""  # live previews are data
    )
    source = shown.json_value()
    return np.asarray(Image.open(io.BytesIO(page.request.get(source).body())).convert("RGB")).astype(int)


def expected(scale: float, **options: float) -> np.ndarray:
    photo = read_picture(PHOTO).pixels[None, :3]
    return upscale(load().model, photo, UpscaleOptions(scale, **options))[0].movedim(0, -1).numpy() * 255


def require_equal(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).mean() < TOLERANCE


def test_the_upscaler_gives_the_models_result(extras: Page) -> None:
    choose(extras, "#extras_upscaler_1", UPSCALER)
    require_equal(generated(extras), expected(4))


def test_the_section_gives_the_models_result_with_its_settings(extras: Page) -> None:
    extras.locator(f"{SECTION} > .label-wrap").click()  # opens it, and so enables it
    for name, value in (("scale", "2.5"), ("detail", "0.5")):
        number = extras.locator(f"{SECTION}_{name} input[type=number]")
        number.fill(value)
        number.blur()
    require_equal(generated(extras), expected(2.5, detail=0.5))
