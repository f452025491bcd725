"""Quality measures against formulas worked by hand in numpy, and on real photographs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from onestep_sr.sr_models.canvas.degradation import add_noise, blur, gaussian_kernel, jpeg
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.measures import evaluate, niqe
from onestep_sr.sr_models.measures.metrics import grey, high_frequency_power, psnr, ssim
from PIL import Image
from places import ROOT
from safetensors import safe_open
from torch import Tensor

PHOTOS = (ROOT / "demo" / "photo.png", ROOT / "tests" / "photos" / "houses.png")
VALIDATION = ROOT.parent / "shared" / "data" / "val"


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def opened(path: Path) -> Image.Image:
    """RGB, sides cut to multiples of 4."""
    image = Image.open(path).convert("RGB")
    return image.crop((0, 0, image.width // 4 * 4, image.height // 4 * 4))


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


# PSNR


def test_psnr_of_a_constant_error() -> None:
    assert psnr(torch.full((3, 40, 40), 0.6), torch.full((3, 40, 40), 0.5)) == pytest.approx(20, abs=1e-4)


def test_psnr_of_known_noise() -> None:
    clean = torch.full((3, 256, 256), 0.5, dtype=torch.float64)
    noisy = clean + 0.03 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert psnr(noisy, clean) == pytest.approx(-20 * math.log10(0.03), abs=0.05)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_the_border_does_not_count(measure) -> None:
    image = noise(3, 48, 40)
    framed = image.clone()
    framed[:, :8] = framed[:, -8:] = 0
    framed[:, :, :8] = framed[:, :, -8:] = 1
    assert measure(framed, image) == measure(image, image)
    assert measure(framed, image, border=0) < measure(image, image)


# SSIM


def ssim_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """Equation 13 of Wang et al. at each whole window, with central moments, where ours takes raw ones."""
    distance = np.hypot(*np.mgrid[-5:6, -5:6])
    weight = np.exp(-(distance**2) / (2 * 1.5**2))
    weight /= weight.sum()
    values = []
    for a, b in zip(windows(x, 11), windows(y, 11), strict=True):
        mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
        variance_a, variance_b = (weight * (a - mean_a) ** 2).sum(), (weight * (b - mean_b) ** 2).sum()
        covariance = (weight * (a - mean_a) * (b - mean_b)).sum()
        above = (2 * mean_a * mean_b + 0.0001) * (2 * covariance + 0.0009)
        values.append(above / ((mean_a**2 + mean_b**2 + 0.0001) * (variance_a + variance_b + 0.0009)))
    return float(np.mean(values))


def windows(x: np.ndarray, side: int) -> np.ndarray:
    return sliding_window_view(x, (side, side)).reshape(-1, side, side)


@pytest.mark.parametrize("border", [0, 8])
def test_ssim_is_the_formula(border: int) -> None:
    x = noise(3, 31, 42)
    y = (0.7 * x + 0.3 * noise(3, 31, 42, seed=1)).clamp(0, 1)
    inside = slice(border, -border or None)
    luma = [np.tensordot((0.299, 0.587, 0.114), p.double().numpy(), 1)[inside, inside] for p in (x, y)]
    assert ssim(x, y, border) == pytest.approx(ssim_by_hand(*luma), abs=1e-9)
    assert 0 < ssim(x, y, border) < 1


def test_ssim_of_a_picture_with_itself_is_one() -> None:
    assert ssim(noise(3, 40, 40), noise(3, 40, 40)) == pytest.approx(1, abs=1e-12)


def test_ssim_of_constants_is_the_luminance_term() -> None:
    a, b = 0.3, 0.8
    expected = (2 * a * b + 0.0001) / (a * a + b * b + 0.0001)
    pictures = [torch.full((3, 40, 40), value, dtype=torch.float64) for value in (a, b)]
    assert ssim(*pictures) == pytest.approx(expected, abs=1e-9)


# Fine detail


@pytest.mark.parametrize(("down", "across", "counts"), [(0, 7, False), (0, 9, True), (5, 5, False), (6, 6, True)])
def test_high_frequency_power_of_a_sine(down: int, across: int, counts: bool) -> None:
    """A quarter of Nyquist is 8 periods on 64 px, in any direction; the power is the sum of squares, N^2 a^2 / 2."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    image = (0.5 + 0.1 * torch.sin(2 * math.pi * (down * y + across * x) / 64)).expand(3, -1, -1)
    expected = 64**2 * 0.1**2 / 2 if counts else 0
    assert high_frequency_power(image) == pytest.approx(expected, rel=1e-4, abs=1e-6)


# NIQE


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize(("left", "right"), [(1.0, 1.0), (0.5, 1.5)])
def test_a_fit_recovers_the_distribution(shape: float, left: float, right: float) -> None:
    """If |x / scale|^shape is Gamma(1/shape) and a side is as likely as its scale is wide, x is the AGGD."""
    rng = np.random.default_rng(0)
    size = rng.gamma(1 / shape, size=200_000) ** (1 / shape)
    samples = np.where(rng.random(size.shape) < left / (left + right), -left * size, right * size)
    fitted = torch.cat(niqe.fit_asymmetric(torch.from_numpy(samples)[None]))
    np.testing.assert_allclose(fitted, (shape, left, right), rtol=0.04)


def gamma_ratio(shape: float) -> float:
    return math.gamma(2 / shape) ** 2 / (math.gamma(1 / shape) * math.gamma(3 / shape))


def aggd_by_hand(x: np.ndarray) -> tuple[float, float, float, float]:
    """Shape by bisection, mean, left and right scale; section 3 of the paper."""
    left, right = math.sqrt((x[x < 0] ** 2).mean()), math.sqrt((x[x > 0] ** 2).mean())
    g = left / right
    wanted = np.abs(x).mean() ** 2 / (x**2).mean() * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
    low, high = 0.2, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gamma_ratio(middle) < wanted else (low, middle)
    scale = math.sqrt(math.gamma(1 / low) / math.gamma(3 / low))
    mean = (right - left) * scale * math.gamma(2 / low) / math.gamma(1 / low)
    return low, mean, left * scale, right * scale


def features_by_hand(luma: np.ndarray) -> list[float]:
    """The 18 features of one patch that is a whole picture, in the paper's order."""
    distance = np.hypot(*np.mgrid[-3:4, -3:4])
    weight = np.exp(-(distance**2) / (2 * (7 / 6) ** 2))
    weight /= weight.sum()
    around = windows(np.pad(luma, 3, mode="edge"), 7)
    mean = (weight * around).sum(axis=(1, 2))
    deviation = np.sqrt((weight * (around - mean[:, None, None]) ** 2).sum(axis=(1, 2)))
    normalised = ((luma.ravel() - mean) / (deviation + 1)).reshape(luma.shape)
    shape, _, left, right = aggd_by_hand(normalised)
    features = [shape, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        features += aggd_by_hand(normalised * np.roll(normalised, shift, axis=(0, 1)))
    return features


def test_features_are_the_formulas() -> None:
    image = to_tensor(Image.open(PHOTOS[1]).convert("RGB"))[:, :96, :96]
    luma = grey(image.double()) * 255
    half = torch.nn.functional.interpolate(luma[None, None], (48, 48), mode="bicubic", antialias=True)[0, 0]
    expected = features_by_hand(luma.numpy()) + features_by_hand(half.numpy())
    features, _ = niqe.patch_features(image)
    np.testing.assert_allclose(features[0], expected, rtol=3e-3, atol=3e-3)  # ours looks the shape up in steps of 0.001


def test_the_score_is_the_distance() -> None:
    image = noise(3, 200, 300)
    features = niqe.patch_features(image)[0].numpy()
    assert features.shape == (6, 36)
    model = niqe.NiqeModel(torch.linspace(0, 1, 36).double(), torch.eye(36).double() * 0.5)
    covariance = (np.cov(features, rowvar=False) + model.covariance.numpy()) / 2
    difference = features.mean(axis=0) - model.mean.numpy()
    expected = math.sqrt(difference @ np.linalg.solve(covariance, difference))
    assert niqe.score(image, model) == pytest.approx(expected, rel=1e-6)


def test_fitting_takes_only_sharp_patches() -> None:
    image = torch.full((3, 96, 192), 0.5)
    image[:, :, :96] = noise(3, 96, 96)
    model = niqe.fit([image, image.flip(-2)])
    sharp = torch.cat([niqe.patch_features(i)[0][:1] for i in (image, image.flip(-2))])
    torch.testing.assert_close(model.mean, sharp.mean(dim=0))
    torch.testing.assert_close(model.covariance, sharp.T.cov())


def test_a_model_survives_its_file(tmp_path: Path) -> None:
    model = niqe.NiqeModel(torch.arange(36).double(), torch.eye(36).double())
    model.save(tmp_path / "m.safetensors", "these pictures")
    again = niqe.NiqeModel.load(tmp_path / "m.safetensors")
    assert torch.equal(again.mean, model.mean)
    assert torch.equal(again.covariance, model.covariance)


def test_the_shipped_model_is_sound() -> None:
    model = niqe.NiqeModel.load()
    assert model.mean.shape == (36,)
    assert torch.equal(model.covariance, model.covariance.T)
    assert torch.linalg.eigvalsh(model.covariance).min() > 0
    with safe_open(niqe.MODEL_FILE, "pt") as file:
        assert "photographs" in json.loads(file.metadata()["niqe"])["fitted_on"]
    assert niqe.MODEL_FILE.stat().st_size < 10_000


def test_a_flat_picture_has_a_finite_score() -> None:
    assert math.isfinite(niqe.score(torch.full((3, 200, 200), 0.5), niqe.NiqeModel.load()))


@pytest.mark.parametrize("size", [(95, 200), (200, 95)])
def test_niqe_refuses_small_pictures(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=f"{size[1]} x {size[0]} px.*96"):
        niqe.score(noise(3, *size), niqe.NiqeModel.load())


def down_and_up(image: Image.Image) -> Image.Image:
    small = image.resize((image.width // 4, image.height // 4), Image.Resampling.BICUBIC)
    return small.resize(image.size, Image.Resampling.BICUBIC)


SPOIL = {
    "bicubic x4 down and up": down_and_up,
    "blurred": lambda image: blur(image, gaussian_kernel(1.0, 1.0, angle=0)),
    "noisy": lambda image: add_noise(image, 10, np.random.default_rng(0)),
    "JPEG": lambda image: jpeg(image, 20),
}


@pytest.mark.parametrize("kind", SPOIL)
@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.stem)
def test_niqe_prefers_a_photo_as_it_is(photo: Path, kind: str) -> None:
    image, model = opened(photo), niqe.NiqeModel.load()
    assert niqe.score(to_tensor(image), model) < niqe.score(to_tensor(SPOIL[kind](image)), model)


@pytest.mark.skipif(not VALIDATION.is_dir(), reason="the validation photographs are not here")
def test_niqe_prefers_validation_photos_as_they_are() -> None:
    model, images = niqe.NiqeModel.load(), [opened(file) for file in sorted(VALIDATION.glob("*.png"))[::6]]
    as_they_are = np.mean([niqe.score(to_tensor(image), model) for image in images])
    for kind, spoil in SPOIL.items():
        assert as_they_are < np.mean([niqe.score(to_tensor(spoil(image)), model) for image in images]) - 0.3, kind


# Evaluation


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        opened(PHOTOS[0]).crop((0, 0, 118, 100)).save(tmp_path / name)
    return tmp_path


def perfect(hr: Image.Image) -> evaluate.Upscaler:
    return lambda lr: to_tensor(hr)[None]


def test_a_perfect_upscaler_gets_perfect_marks(folder: Path) -> None:
    hr = opened(folder / "a.png")
    (row,) = evaluate.evaluate({"perfect": perfect(hr)}, folder, {"bicubic": evaluate.shrink})
    expected = (120.0, 1.0, niqe.score(to_tensor(hr), niqe.NiqeModel.load()), 1.0)
    assert (row.psnr, row.ssim, row.niqe, row.detail) == pytest.approx(expected, abs=1e-6)


def test_rows_cover_every_pair(folder: Path) -> None:
    rows = evaluate.evaluate(evaluate.BASELINES, folder, evaluate.DEGRADATIONS)
    pairs = [(row.degradation, row.upscaler) for row in rows]
    assert pairs == [("bicubic", "bicubic"), ("bicubic", "lanczos"), ("mixed", "bicubic"), ("mixed", "lanczos")]
    assert all(0 < row.detail < 1 and 0 < row.ssim < 1 and row.psnr > 15 and row.seconds > 0 for row in rows)
    assert rows[0].psnr > rows[2].psnr
    assert evaluate.render(rows).row_count == 4
    assert [evaluate.Row(**fields) for fields in json.loads(evaluate.to_json(rows))] == rows
    again = evaluate.evaluate(evaluate.BASELINES, folder, evaluate.DEGRADATIONS)
    assert [replace(row, seconds=0) for row in again] == [replace(row, seconds=0) for row in rows]


def test_the_mixed_degradation_depends_on_the_place_alone() -> None:
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
    with pytest.raises(UserError, match="holds no pictures"):
        evaluate.evaluate(evaluate.BASELINES, tmp_path, evaluate.DEGRADATIONS)
    Image.new("RGB", (99, 95)).save(tmp_path / "small.png")
    with pytest.raises(UserError, match=r"small\.png has 96 x 92 px"):
        evaluate.evaluate(evaluate.BASELINES, tmp_path, evaluate.DEGRADATIONS)
    (tmp_path / "small.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match=r"small\.png"):
        evaluate.evaluate(evaluate.BASELINES, tmp_path, evaluate.DEGRADATIONS)
