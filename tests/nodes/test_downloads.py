"""Offers of missing weights and their downloads, from a publisher on this machine. Here `nodes` has stand-ins for its
parts that import ComfyUI; `tests/hosts/test_browser.py` clicks in a real page."""

from __future__ import annotations

import importlib
import re
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import ROOT
from publisher import CONTENT, Publisher, serve

HYPIR = {"lora": "HYPIR_sd2.pth", "strength_model": "1"}


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    state = Publisher()
    with serve(state) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield state


@pytest.fixture
def module(tmp_path: Path) -> Iterator[types.ModuleType]:
    parts = {
        "": {"__path__": [str(ROOT / "nodes")]},
        ".host": {"model_folders": lambda kind: [tmp_path / kind, tmp_path / "elsewhere" / kind]},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, contents in parts.items():
            stand_in = types.ModuleType(f"onestep_sr.nodes{name}")
            vars(stand_in).update(contents)
            patch.setitem(sys.modules, stand_in.__name__, stand_in)
        yield importlib.import_module("onestep_sr.nodes.downloads")
        sys.modules.pop("onestep_sr.nodes.downloads")


def names(answer: dict) -> list[str]:
    return [file["name"] for file in answer["files"]]


def ended(downloads, widgets: dict) -> dict:
    """The answer once nothing runs any more."""
    while True:
        answer = downloads.answer({"widgets": widgets})
        if not any(file["runs"] for file in answer["files"]):
            return answer
        time.sleep(0.02)


def test_a_missing_file_is_offered_and_never_fetched_by_itself(module, publisher: Publisher, tmp_path: Path) -> None:
    answer = module.Downloads().answer({"widgets": HYPIR})
    [offer] = answer["files"]
    for words in ("HYPIR_sd2.pth", "size", "NOT FOR COMMERCIAL USE", "/lxq007/HYPIR/", str(tmp_path / "loras")):
        assert words in offer["text"]
    assert not offer["runs"] and not offer["error"] and not answer["by_hand"]
    assert not publisher.requests and not list(tmp_path.iterdir())


def test_a_click_fetches_it(module, publisher: Publisher, tmp_path: Path) -> None:
    publisher.stall = threading.Event()
    downloads = module.Downloads()
    downloads.answer({"widgets": HYPIR, "start": "HYPIR_sd2.pth"})
    while not re.search("[2-4] of 5 MB", text := downloads.answer({"widgets": HYPIR})["files"][0]["text"]):
        assert text == "HYPIR_sd2.pth: waiting" or "of 5 MB" in text
        time.sleep(0.02)
    downloads.answer({"widgets": HYPIR, "start": "HYPIR_sd2.pth"})  # runs already
    publisher.stall.set()
    assert not names(ended(downloads, HYPIR))
    assert (tmp_path / "loras" / "HYPIR_sd2.pth").read_bytes() == CONTENT
    assert len([command for command, *_ in publisher.requests if command == "HEAD"]) == 2, "hash and place, once each"


def test_a_cancelled_download_goes_on_later(module, publisher: Publisher, tmp_path: Path) -> None:
    publisher.stall = threading.Event()
    downloads = module.Downloads()
    downloads.answer({"widgets": HYPIR, "start": "HYPIR_sd2.pth"})
    while "of 5 MB" not in downloads.answer({"widgets": HYPIR})["files"][0]["text"]:
        time.sleep(0.02)
    assert "cancelling" in downloads.answer({"widgets": HYPIR, "cancel": "HYPIR_sd2.pth"})["files"][0]["text"]
    publisher.stall.set()
    [offer] = ended(downloads, HYPIR)["files"]
    assert offer["error"].startswith("The download was cancelled.")
    publisher.stall, publisher.requests = None, []
    downloads.answer({"widgets": HYPIR, "start": "HYPIR_sd2.pth"})
    assert not names(ended(downloads, HYPIR))
    assert any(asked and asked != "bytes=0-" for *_, asked, _ in publisher.requests)
    assert (tmp_path / "loras" / "HYPIR_sd2.pth").read_bytes() == CONTENT


def test_a_failure_is_one_sentence_beside_the_offer(module, publisher: Publisher) -> None:
    publisher.status = 404
    downloads = module.Downloads()
    downloads.answer({"widgets": HYPIR, "start": "HYPIR_sd2.pth"})
    [offer] = ended(downloads, HYPIR)["files"]
    assert "does not exist (404)" in offer["error"] and offer["error"].count(".pth") == 1
    assert "is missing" in offer["text"]


def test_the_autoencoder_belongs_beside_the_model(module, tmp_path: Path) -> None:
    answer = module.Downloads().answer
    model = {"model": "SinSR_v2.pth", "autoencoder": "auto"}
    assert names(answer({"widgets": model})) == ["SinSR_v2.pth", "autoencoder_vq_f4.pth"]
    place = tmp_path / "elsewhere" / "onestep_sr"
    place.mkdir(parents=True)
    (place / "SinSR_v2.pth").touch()
    [offer] = answer({"widgets": model})["files"]
    assert offer["name"] == "autoencoder_vq_f4.pth" and str(place) in offer["text"]
    assert not names(answer({"widgets": model | {"autoencoder": "mine.safetensors"}}))
    assert not names(answer({"widgets": {"model": "bundled", "autoencoder": "autoencoder_vq_f4.pth"}}))


def test_what_only_a_browser_can_get_is_said(module, tmp_path: Path) -> None:
    answer = module.Downloads().answer
    widgets = {"lora": "tsdsr\\transformer.safetensors"}
    [sentence] = answer({"widgets": widgets})["by_hand"]
    assert "drive.google.com" in sentence and "models/loras" in sentence and "--lora" not in sentence
    (tmp_path / "loras" / "tsdsr").mkdir(parents=True)
    for name in ("transformer", "vae"):
        (tmp_path / "loras" / "tsdsr" / f"{name}.safetensors").touch()
    assert answer({"widgets": widgets}) == {"files": [], "by_hand": []}


def test_the_tagger_is_offered_file_by_file(module, tmp_path: Path) -> None:
    answer, widgets = module.Downloads().answer, {"tagger": "ram_swin_large_14m.pth", "text": ""}
    found = answer({"widgets": widgets})
    assert names(found) == ["ram_tag_list.txt", "ram_tag_list_threshold.txt"]
    assert "DAPE.pth" in found["by_hand"][0] and "models/onestep_sr" in found["by_hand"][0]
    place = tmp_path / "onestep_sr"
    place.mkdir()
    for name in ("ram_swin_large_14m.pth", "DAPE.pth", "ram_tag_list.txt"):
        (place / name).touch()
    found = answer({"widgets": widgets})
    assert names(found) == ["ram_tag_list_threshold.txt"] and not found["by_hand"]


PRESSED = ("../../secret", "https://example.org/a.pth", "/etc/passwd", "SinSR_v2.pth")


@pytest.mark.parametrize("name", PRESSED)
def test_only_an_offered_name_is_fetched(module, publisher: Publisher, tmp_path: Path, name: str) -> None:
    downloads = module.Downloads()
    downloads.answer({"widgets": HYPIR, "start": name})
    downloads.answer({"widgets": {"lora": name}, "start": name} if name != "SinSR_v2.pth" else {"widgets": {}})
    assert not downloads.transfers and not publisher.requests and not list(tmp_path.iterdir())


TEXTS = st.text(max_size=8) | st.sampled_from(PRESSED)
VALUES = st.none() | st.integers() | TEXTS | st.dictionaries(TEXTS, TEXTS | st.integers(), max_size=2)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(content=VALUES | st.fixed_dictionaries({"widgets": VALUES, "start": VALUES, "cancel": VALUES}))
def test_any_question_is_answered_or_refused(module, monkeypatch, content: object) -> None:
    monkeypatch.setattr(module.Downloads, "_start", lambda *_: None)
    try:
        assert set(module.Downloads().answer(content)) == {"files", "by_hand"}
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
