"""200 of the files that benchmarks/fuzz_weights.py makes; 2,000 and their memory are its own business."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest
from places import ROOT


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_weights", ROOT / "benchmarks" / "fuzz_weights.py")
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_changed_files_end_in_a_sentence_in_little_time(fuzz: ModuleType, tmp_path: Path) -> None:
    seeds = fuzz.write_seeds(tmp_path)
    chance, sentences = random.Random(14), set()
    for _ in range(200):
        name, done, data = fuzz.changed_file(chance, seeds)
        (tmp_path / name).write_bytes(data)
        outcome = fuzz.examine(tmp_path / name)
        assert not outcome.failure, (name, done, outcome)
        assert outcome.seconds < fuzz.SECONDS, (name, done, outcome)
        sentences.add(outcome.sentence)
        (tmp_path / name).write_bytes(seeds[name])
    assert len(sentences) > 40, "the changes reach many checks"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own.safetensors", "One-Step SR model, x4"),
        ("one.safetensors", "TSD-SR (tsd-sr): transformer LoRA, rank 4; VAE encoder LoRA, rank 4"),
        ("small.pth", "TAD-SR, one step, x4"),
        ("legacy.ckpt", "TAD-SR, one step, x4"),
        ("TAD-SR.pth", "TAD-SR, one step, x4"),
    ],
)
def test_the_files_that_are_changed_are_valid(fuzz: ModuleType, tmp_path: Path, name: str, words: str) -> None:
    fuzz.write_seeds(tmp_path)
    assert fuzz.describe(tmp_path / name).startswith(words)
