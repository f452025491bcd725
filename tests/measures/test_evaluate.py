"""The evaluation table."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.measures import evaluate, niqe
from PIL import Image
from places import ROOT
from torch import Tensor

PHOTOS = (ROOT / "tests" / "measures" / "koala.png", ROOT / "tests" / "photos" / "houses.png")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def opened(path: Path) -> Image.Image:
    """RGB, sides cut to multiples of 4."""
    image = Image.open(path).convert("RGB")
    return image.crop((0, 0, image.width // 4 * 4, image.height // 4 * 4))


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        opened(PHOTOS[0]).crop((0, 0, 118, 100)).save(tmp_path / name)
    return tmp_path


def perfect(hr: Image.Image) -> evaluate.Upscaler:
    return lambda lr: to_tensor(hr)[None]


def test_a_perfect_upscaler_gets_perfect_scores(folder: Path) -> None:
    hr = opened(folder / "a.png")
    (row,) = evaluate.evaluate({"perfect": perfect(hr)}, folder, {"bicubic": evaluate.shrink})
    expected = (120.0, 1.0, niqe.score(to_tensor(hr), niqe.NiqeModel.load()), 1.0)
    assert (row.psnr, row.ssim, row.niqe, row.detail) == pytest.approx(expected, abs=1e-6)


def test_rows_cover_every_pair(folder: Path) -> None:
    asked, told = [], []

    def distance(hr: Tensor) -> evaluate.FromHR:
        asked.append(hr)
        return lambda result: (result - hr).abs().mean()

    rows = evaluate.evaluate(
        evaluate.BASELINES, folder, evaluate.DEGRADATIONS, {"lpips": distance}, lambda *done: told.append(done)
    )
    assert len(asked) == 2 and told == [(done, 12) for done in range(1, 13)]
    assert all(row.lpips is not None and 0 < row.lpips < 0.3 for row in rows)
    pairs = [(row.degradation, row.upscaler) for row in rows]
    assert pairs == [
        ("bicubic", "bicubic"),
        ("bicubic", "lanczos"),
        ("mild", "bicubic"),
        ("mild", "lanczos"),
        ("mixed", "bicubic"),
        ("mixed", "lanczos"),
    ]
    assert all(0 < row.detail < 1 and 0 < row.ssim < 1 and row.psnr > 15 and row.seconds > 0 for row in rows)
    assert rows[0].psnr > max(rows[2].psnr, rows[4].psnr)
    assert evaluate.render(rows).row_count == 6
    assert [evaluate.Row(**fields) for fields in json.loads(evaluate.to_json(rows))] == rows
    again = evaluate.evaluate(evaluate.BASELINES, folder, evaluate.DEGRADATIONS)
    assert again == [replace(row, seconds=other.seconds, lpips=None) for row, other in zip(rows, again, strict=True)]


def test_the_mixed_degradation_depends_on_the_index_only() -> None:
    hr = opened(PHOTOS[1])
    first, again, next_one = (np.asarray(evaluate.mixed(hr, index)) for index in (0, 0, 1))
    assert first.shape == (32, 32, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, next_one)


@pytest.mark.parametrize("upscaler", evaluate.BASELINES.values(), ids=evaluate.BASELINES)
def test_baselines_enlarge_four_times_in_range(upscaler: evaluate.Upscaler) -> None:
    result = upscaler(noise(1, 3, 9, 13).round())
    assert result.shape == (1, 3, 36, 52)
    assert (result.min(), result.max()) == (0, 1)
    torch.testing.assert_close(upscaler(torch.full((1, 3, 8, 8), 0.2)), torch.full((1, 3, 32, 32), 0.2))


def test_flat_pictures_can_be_evaluated(tmp_path: Path) -> None:
    Image.new("RGB", (96, 96), "white").save(tmp_path / "white.png")
    rows = evaluate.evaluate(evaluate.BASELINES, tmp_path, evaluate.DEGRADATIONS)
    assert all(math.isfinite(row.detail) and math.isfinite(row.niqe) for row in rows)


def test_pictures_that_cannot_be_evaluated_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no pictures"):
        evaluate.evaluate(evaluate.BASELINES, tmp_path, evaluate.DEGRADATIONS)
    Image.new("RGB", (99, 95)).save(tmp_path / "small.png")
    with pytest.raises(UserError, match=r"small\.png has 96 x 92 px"):
        evaluate.evaluate(evaluate.BASELINES, tmp_path, evaluate.DEGRADATIONS)
    (tmp_path / "small.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match=r"small\.png"):
        evaluate.evaluate(evaluate.BASELINES, tmp_path, evaluate.DEGRADATIONS)
