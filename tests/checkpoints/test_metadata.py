"""JSON of unknown origin, and the bounds of our own descriptions."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from onestep_sr.sr_models.checkpoints.metadata import read_json, require_within
from onestep_sr.sr_models.core.schedule import ResShiftSchedule
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families import bundled
from onestep_sr.sr_models.families.catalogue import describe
from onestep_sr.sr_models.families.loading import load
from onestep_sr.sr_models.networks.swin_unet import SwinUNet, SwinUNetConfig
from safetensors.torch import save_file

TEXTS = [
    "",
    "{",
    "[" * 100_000,
    '{"a":' * 20 + "1" + "}" * 20,
    "NaN",
    "-Infinity",
    "1e999",
    "9" * 5000,
    '"a' + "b" * 2**20,
]


@pytest.mark.parametrize("text", TEXTS, ids=[text[:10] for text in TEXTS])
def test_json_that_is_broken_deep_long_or_not_finite(text: str) -> None:
    with pytest.raises(
        UserError, match=r"m\.safetensors has a broken description \(.+\): download it again\."
    ) as caught:
        read_json(text, "m.safetensors")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200


def test_other_json_is_what_json_says() -> None:
    content = {"a": [1, 2.5, None, True, "x"], "b": {"c": {}}}
    assert read_json(json.dumps(content), "m") == content


@pytest.mark.parametrize("value", ["1", None, True, 1.0, [1]])
def test_only_numbers_are_within_bounds(value: Any) -> None:
    with pytest.raises(TypeError):
        require_within({"a": value}, {"a": (0, 2)})


def test_bounds_are_part_of_what_they_bound() -> None:
    require_within({"a": 0, "b": 1, "c": 2.0, "other": 99}, {"a": (0, 2), "b": (0.0, 2.0), "c": (0.0, 2.0)})
    with pytest.raises(ValueError, match="a is 3, which is not within 0 and 2"):
        require_within({"a": 3}, {"a": (0, 2)})


GOOD = bundled.Description(SwinUNetConfig(bicubic_skip=4, latent_channels=48), ResShiftSchedule(steps=4))
ABSURD = [
    ("network", "channels", 10**9),
    ("network", "channels", 33),
    ("network", "swin_channels", 48),
    ("network", "head_channels", 7),
    ("network", "multipliers", [1] * 100_000),
    ("network", "multipliers", []),
    ("network", "multipliers", [10**6]),
    ("network", "multipliers", "12"),
    ("network", "multipliers", 4),
    ("network", "blocks_per_level", 10**6),
    ("network", "swin_depth", 10**6),
    ("network", "window", 0),
    ("network", "window", 4096),
    ("network", "native_size", 2**20),
    ("network", "native_size", 60),
    ("network", "mlp_ratio", 1e9),
    ("network", "bicubic_skip", 0),
    ("network", "latent_channels", "many"),
    ("network", "unknown", 1),
    ("schedule", "steps", 10**12),
    ("schedule", "steps", 1),
    ("schedule", "kappa", 0),
    ("schedule", "kappa", 1e300),
    ("schedule", "power", 1e300),
    ("schedule", "min_noise", -1),
    ("schedule", "end", 5),
]


@pytest.mark.parametrize(
    ("part", "name", "value"), ABSURD, ids=[f"{name} {str(value)[:9]}" for _, name, value in ABSURD]
)
def test_absurd_settings_are_refused_before_anything_is_built(tmp_path: Path, part: str, name: str, value: Any) -> None:
    fields = json.loads(GOOD.to_json())
    fields[part][name] = value
    save_file({"a": torch.ones(1)}, tmp_path / "m.safetensors", metadata={"onestep_sr": json.dumps(fields)})
    start = time.process_time()
    assert "has a broken description" in describe(tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="has a broken description"):
        load(tmp_path / "m.safetensors")
    assert time.process_time() - start < 1


@pytest.mark.parametrize("text", ["null", "[]", "3", '{"network": []}', '{"network": {"multipliers": null}}', '"text"'])
def test_descriptions_of_another_form(tmp_path: Path, text: str) -> None:
    for key in ("onestep_sr", "onestep_sr_lora"):
        save_file({"transformer.a": torch.ones(1)}, tmp_path / "m.safetensors", metadata={key: text})
        assert "m.safetensors has a broken description" in describe(tmp_path / "m.safetensors")


def test_the_largest_settings_build_in_little_time() -> None:
    largest = {name: high for name, (_, high) in bundled.BOUNDS.items() if name in asdict(GOOD.network)}
    largest |= {"multipliers": (16,) * bundled.MAX_LEVELS}
    start = time.process_time()
    with torch.device("meta"):
        SwinUNet(SwinUNetConfig(**largest))
    assert time.process_time() - start < 2
