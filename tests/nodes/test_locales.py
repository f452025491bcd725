"""Every node's texts in every language: none is missing or outdated, and fixed names are not translated."""

from __future__ import annotations

import re
from typing import Any

import pytest
from node_texts import LANGUAGES, LOCALES, Texts, paths_of, texts_of

KEPT = re.compile(
    r"One-Step SR|TSD-SR|TAD-SR|TAD-SeeSR|RAM|PiSA-SR|OSEDiff|HYPIR|OMGSR-S|GDPO-SR|S3Diff|InvSR|SinSR|ResShift"
    r"|Stable Diffusion 3|SD-Turbo|SDXL|CLIP|VQ-f4|models/\w+|\w+\.(?:safetensors|pth|pt|pkl|txt)"
    r"|'bundled'|'from text'|'from LoRA'"
    r"|\b(?:auto|tsd-sr(?:-mse)?|SR_MODEL|MODEL|VAE|MASK|BasicGuider|CFGGuider|SamplerCustomAdvanced)\b"
)


def at(texts: Texts, path: str) -> str:
    value: Any = texts
    for key in path.split("."):
        value = value[key]
    return value


def test_the_languages_are_those_that_are_promised() -> None:
    assert sorted(path.name for path in LOCALES.iterdir()) == sorted(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_is_missing_stale_or_empty(language: str) -> None:
    texts = texts_of(language)
    assert paths_of(texts) == paths_of(texts_of("en"))
    assert all(at(texts, path).strip() for path in paths_of(texts))


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_names_that_a_user_must_type_or_find_are_kept(language: str) -> None:
    english, texts = texts_of("en"), texts_of(language)
    for path in sorted(paths_of(english)):
        kept = {word for word in KEPT.findall(at(english, path)) if not path.endswith(".name") or ".outputs." in path}
        lost = [word for word in kept if word not in at(texts, path)]
        assert not lost, f"{path}: {lost} in {at(texts, path)!r}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_choices_that_a_tooltip_explains_are_those_of_the_list(language: str) -> None:
    explained = at(texts_of(language), "OneStepSRMatchColor.inputs.method.tooltip")
    assert "wavelet" in explained and "adain" in explained


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_the_tooltips_are_translated(language: str) -> None:
    english, texts = texts_of("en"), texts_of(language)
    tooltips = [path for path in paths_of(english) if path.endswith((".tooltip", ".description"))]
    same = [path for path in tooltips if at(english, path) == at(texts, path)]
    assert not same
