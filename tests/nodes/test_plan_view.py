"""Questions to the estimate, including hostile ones. Here `nodes` has stand-ins for its parts that import ComfyUI;
`tests/hosts/test_comfyui.py` asks a real server."""

from __future__ import annotations

import importlib
import json
import math
import sys
import time
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onestep_sr.sr_models.core.memory import available
from onestep_sr.sr_models.families.bundled import BUNDLED
from places import ROOT

LOAD, MODEL = "OneStepSRLoadModel", "OneStepSRModel"
SECONDS = 0.05
QUESTION = {
    "node": LOAD,
    "model": {"model": "bundled", "autoencoder": "auto", "recipe": "auto"},
    "width": 256,
    "height": 192,
    "upscale_by": 4.0,
    "tile": 512,
    "overlap": 64,
}
LORA = QUESTION | {"node": MODEL, "model": {"recipe": "tsd-sr"}, "tile": 0}


def cpu() -> torch.device:
    return torch.device("cpu")


@pytest.fixture(scope="module")
def plan_view() -> types.ModuleType:
    parts = {
        "": {"__path__": [str(ROOT / "nodes")]},
        ".host": {
            "MODEL_FOLDER": "onestep_sr",
            "weights_files": lambda folder: [],
            "compute_device": cpu,
            "free_memory": available,
        },
        ".host_sd": {"VAE_FACTOR": 8},
        ".pace": {"expected_seconds": lambda name, work: 1e-7 * work},
        ".stable_diffusion": {"MODEL_ID": MODEL, "LORA_FOLDER": "loras"},
        ".upscaling": {
            "BUNDLED_NAME": "bundled",
            "AUTO": "auto",
            "COMBINER": "Combine",
            "LOADER": "Load",
            "model_path": lambda name: BUNDLED,
        },
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, contents in parts.items():
            module = types.ModuleType(f"onestep_sr.nodes{name}")
            vars(module).update(contents)
            patch.setitem(sys.modules, module.__name__, module)
        yield importlib.import_module("onestep_sr.nodes.plan_view")
        sys.modules.pop("onestep_sr.nodes.plan_view")


def answered(plan_view, question) -> dict | None:
    """The answer, or None if the question is refused with one sentence; in under 50 ms of the processor's time."""
    started = time.process_time()
    try:
        answer = plan_view.answer(question)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
        answer = None
    assert time.process_time() - started < SECONDS
    return answer


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200)
@given(JSON)
def test_what_is_no_question_is_refused(plan_view, content) -> None:
    assert answered(plan_view, content) is None


@settings(max_examples=300)
@given(base=st.sampled_from([QUESTION, LORA]), name=st.sampled_from([*QUESTION, "missing", "recipe"]), value=JSON)
def test_any_value_in_a_question_is_answered_or_refused(plan_view, base, name, value) -> None:
    question = base | {"model": base["model"] | {name: value}} if name == "recipe" else base | {name: value}
    answer = answered(plan_view, question)
    assert answer is None or json.dumps(answer, allow_nan=False)


@settings(max_examples=200)
@given(
    base=st.sampled_from([QUESTION, LORA]),
    width=st.integers(1, 2**20),
    height=st.integers(1, 2**20),
    upscale_by=st.floats(1, 8),
    tile=st.integers(0, 8192),
    overlap=st.integers(0, 300),
)
def test_every_size_is_answered_by_arithmetic(plan_view, base, **numbers) -> None:
    answer = answered(plan_view, base | numbers)
    if answer["width"] is not None:
        assert answer["width"] == round(numbers["upscale_by"] * numbers["width"])
        assert answer["text"].startswith(f"{answer['width']} x {answer['height']} px: ")


@pytest.mark.parametrize("name", ["width", "height", "upscale_by", "tile", "overlap"])
@pytest.mark.parametrize("value", [10**30, -2, math.nan, math.inf, -math.inf, "256", None, True, [], {}, 2**20 + 1])
def test_a_number_that_is_none_is_refused(plan_view, name, value) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be a number from (-1|0) to 1048576$"):
        plan_view.answer(QUESTION | {name: value})


@pytest.mark.parametrize("name", ["width", "height", "upscale_by", "tile"])
def test_only_the_overlap_can_be_left_to_the_model(plan_view, name) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be a number from 0 to 1048576$"):
        plan_view.answer(QUESTION | {name: -1})
    for question, own in ((QUESTION, 64), (LORA, 64)):
        assert plan_view.answer(question | {"overlap": -1}) == plan_view.answer(question | {"overlap": own})


@pytest.mark.parametrize("name", list(QUESTION))
def test_a_missing_part_is_refused(plan_view, name) -> None:
    with pytest.raises(ValueError, match="must be an object with node, model, width"):
        plan_view.answer({key: value for key, value in QUESTION.items() if key != name})


def test_a_question_is_answered(plan_view) -> None:
    answer = plan_view.answer(QUESTION)
    assert (answer["width"], answer["height"]) == (1024, 768)
    assert answer["text"].startswith("1024 x 768 px: 6 tiles (3 x 2) of 512 x 512 px, about ")
    assert answer["text"].endswith(" s, 105 MB of main memory") and answer["level"] == "fits"
    outside = plan_view.answer(QUESTION | {"model": {"model": "../secret", "recipe": "auto"}})
    assert outside["text"] == "../secret is not in models/onestep_sr: choose another model."


def test_target_sizes_batches_and_wrap_are_answered(plan_view) -> None:
    def text(**changes: object) -> str:
        return plan_view.answer(QUESTION | changes)["text"]

    assert text(size="longest side", pixels=1920).startswith("1920 x 1440 px: ")
    assert text(size="fit 1080p", width=960, height=540).startswith("1920 x 1080 px: ")
    assert text(size="megapixels", megapixels=0.75).startswith("1000 x 750 px: ")
    assert text(size="width", pixels=128) == "128 x 96 px: only shrunk, without the model"
    assert text(size="width", pixels=4096).endswith("choose a smaller size.")
    assert text(size="wide").startswith("Size 'wide' is unknown: ")
    assert text(count=3).endswith(", 130 MB of main memory")
    assert text(wrap="x").startswith("1024 x 768 px: 6 tiles (3 x 2)") and text(wrap="z").startswith("Wrap 'z'")


def test_a_wrong_file_is_named_before_the_image_is_known(plan_view) -> None:
    unknown = QUESTION | {"width": 0, "height": 0}
    assert plan_view.answer(unknown) == {"text": "", "level": None, "width": None, "height": None, "noise": False}
    named = plan_view.answer(unknown | {"model": {"model": "lost.pth", "recipe": "auto"}})["text"]
    assert named == "lost.pth is not in models/onestep_sr: choose another model."


def test_a_models_file_is_read_once_until_it_is_replaced(plan_view, monkeypatch, tmp_path) -> None:
    read, path = [], tmp_path / "mine.safetensors"
    real = plan_view.recipe_of
    monkeypatch.setattr(plan_view, "recipe_of", lambda file, recipe: read.append(file) or real(BUNDLED, recipe))
    monkeypatch.setattr(plan_view.upscaling, "model_path", lambda name: path)
    for count, content in enumerate((b"one", b"another"), 1):
        path.write_bytes(content)
        for width in (100, 200):
            plan_view.answer(QUESTION | {"width": width})
        assert len(read) == count
