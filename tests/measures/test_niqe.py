"""NIQE, compared with the paper's formulas in numpy, and on real photographs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from onestep_sr.sr_models.canvas.degradation import add_noise, blur, gaussian_kernel, jpeg
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.measures import niqe
from PIL import Image
from places import ROOT
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

PHOTOS = (ROOT / "tests" / "measures" / "koala.png", ROOT / "tests" / "photos" / "houses.png")
VALIDATION = ROOT.parent / "shared" / "data" / "val"


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def opened(path: Path) -> Image.Image:
    """RGB, sides cut to multiples of 4."""
    image = Image.open(path).convert("RGB")
    return image.crop((0, 0, image.width // 4 * 4, image.height // 4 * 4))


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def windows(x: np.ndarray, side: int) -> np.ndarray:
    return sliding_window_view(x, (side, side)).reshape(-1, side, side)


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
    """Shape by bisection and then to three digits, mean, left and right scale; section 3 of the paper."""
    left, right = math.sqrt((x[x < 0] ** 2).mean()), math.sqrt((x[x > 0] ** 2).mean())
    g = left / right
    wanted = np.abs(x).mean() ** 2 / (x**2).mean() * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
    low, high = 0.2, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gamma_ratio(middle) < wanted else (low, middle)
    around = math.floor(low * 1000) / 1000, math.ceil(low * 1000) / 1000
    shape = min(around, key=lambda each: abs(gamma_ratio(each) - wanted))
    scale = math.sqrt(math.gamma(1 / shape) / math.gamma(3 / shape))
    mean = (right - left) * scale * math.gamma(2 / shape) / math.gamma(1 / shape)
    return shape, mean, left * scale, right * scale


def luma_by_hand(image: Tensor) -> np.ndarray:
    red, green, blue = image.double().numpy()
    return np.round(16 + 65.481 * red + 128.553 * green + 24.966 * blue)


def normalised_by_hand(luma: np.ndarray) -> np.ndarray:
    distance = np.hypot(*np.mgrid[-3:4, -3:4])
    weight = np.exp(-(distance**2) / (2 * (7 / 6) ** 2))
    weight /= weight.sum()
    around = windows(np.pad(luma, 3, mode="edge"), 7)
    mean = (weight * around).sum(axis=(1, 2))
    deviation = np.sqrt((weight * (around - mean[:, None, None]) ** 2).sum(axis=(1, 2)))
    return ((luma.ravel() - mean) / (deviation + 1)).reshape(luma.shape)


def halved_by_hand(luma: np.ndarray) -> np.ndarray:
    """A row per result: Keys' kernel (a = -0.5) stretched to twice its width, from a mirrored picture."""

    def rows(length: int) -> np.ndarray:
        matrix = np.zeros((length // 2, length))
        for row in range(length // 2):
            for tap in range(2 * row - 3, 2 * row + 5):
                d = abs(tap - (2 * row + 0.5)) / 2
                near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
                mirrored = -1 - tap if tap < 0 else min(tap, 2 * length - 1 - tap)
                matrix[row, mirrored] += (near if d <= 1 else far) / 2
        return matrix

    return rows(luma.shape[0]) @ luma @ rows(luma.shape[1]).T


def features_by_hand(coefficients: np.ndarray) -> list[float]:
    """The 18 features of one patch, in the paper's order."""
    shape, _, left, right = aggd_by_hand(coefficients)
    features = [shape, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        features += aggd_by_hand(coefficients * np.roll(coefficients, shift, axis=(0, 1)))
    return features


def niqe_by_hand(image: Tensor) -> tuple[np.ndarray, float]:
    """The features (patches, 36), row by row, and the score on the shipped model."""
    rows, columns = image.shape[-2] // 96, image.shape[-1] // 96
    luma = luma_by_hand(image)[: rows * 96, : columns * 96]
    scales = [(normalised_by_hand(luma), 96), (normalised_by_hand(halved_by_hand(luma)), 48)]
    features = np.array(
        [
            [value for whole, side in scales for value in features_by_hand(cut(whole, row, column, side))]
            for row in range(rows)
            for column in range(columns)
        ]
    )
    model = load_file(niqe.MODEL_FILE)
    difference = features.mean(axis=0) - model["mean"].numpy()
    covariance = (np.cov(features, rowvar=False) + model["covariance"].numpy()) / 2
    return features, math.sqrt(difference @ np.linalg.pinv(covariance) @ difference)


def cut(whole: np.ndarray, row: int, column: int, side: int) -> np.ndarray:
    return whole[row * side : (row + 1) * side, column * side : (column + 1) * side]


def large_photo() -> Tensor:
    """The sample photo and its mirror images side by side, 360 x 480 px."""
    photo = to_tensor(opened(PHOTOS[0]))
    rows = torch.cat([photo, photo.flip(-1)], dim=-1)
    return torch.cat([rows, rows.flip(-2)], dim=-2)


def test_features_and_score_are_the_formulas() -> None:
    image = large_photo()[:, 20:320, 30:250]
    features, score = niqe_by_hand(image)
    assert features.shape == (6, 36)
    np.testing.assert_allclose(niqe.patch_features(image), features, rtol=1e-6, atol=1e-6)
    assert niqe.score(image, niqe.NiqeModel.load()) == pytest.approx(score, rel=1e-6)


@pytest.mark.parametrize("size", [(96, 96), (192, 288)])
def test_half_the_size_is_matlabs(size: tuple[int, int]) -> None:
    luma = niqe.rounded_luma(noise(3, *size))
    half = niqe.halved(luma[None, None])[0, 0]
    np.testing.assert_allclose(half, halved_by_hand(luma.numpy()), rtol=1e-12)


def test_luma_is_matlabs() -> None:
    """`rgb2ycbcr` of 8-bit white, black, red, green and blue, as MATLAB's documentation of the range has them."""
    colours = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).T[:, None].float()
    assert niqe.rounded_luma(colours).tolist() == [[235, 16, 81, 145, 41]]


def test_the_score_is_the_distance() -> None:
    image = noise(3, 200, 300)
    features = niqe.patch_features(image).numpy()
    assert features.shape == (6, 36)
    model = niqe.NiqeModel(torch.linspace(0, 1, 36).double(), torch.eye(36).double() * 0.5)
    covariance = (np.cov(features, rowvar=False) + model.covariance.numpy()) / 2
    difference = features.mean(axis=0) - model.mean.numpy()
    expected = math.sqrt(difference @ np.linalg.solve(covariance, difference))
    assert niqe.score(image, model) == pytest.approx(expected, rel=1e-6)


def test_the_shipped_model_is_the_published_one() -> None:
    """Values from BasicSR's file, and properties of every covariance."""
    model = niqe.NiqeModel.load()
    assert model.mean.shape == (36,)
    assert model.mean[:3].tolist() == [2.6013136801541448, 0.9057027215337194, 0.8120477842003849]
    assert float(model.covariance.trace()) == pytest.approx(1.630918831642101, rel=1e-12)
    assert torch.equal(model.covariance, model.covariance.T)
    assert torch.linalg.eigvalsh(model.covariance).min() > 0
    with safe_open(niqe.MODEL_FILE, "pt") as file:
        metadata = file.metadata()
    assert "BasicSR" in metadata["source"] and metadata["licence"] == "Apache-2.0"
    assert niqe.MODEL_FILE.stat().st_size < 12_000


def test_flat_patches_do_not_count() -> None:
    """Like in the published code, which ignores features that are NaN."""
    model, image = niqe.NiqeModel.load(), large_photo()[:, :288, :]
    flat = torch.full((3, 288, 672), 0.7)
    flat[:, :, :480] = image
    features = niqe.patch_features(flat)
    # The last column of patches is flat; the one before it touches the photo.
    assert features.isnan().any(dim=1).tolist() == ([False] * 6 + [True]) * 3
    kept = features[~features.isnan().any(dim=1)].numpy()
    difference = kept.mean(axis=0) - model.mean.numpy()
    covariance = (np.cov(kept, rowvar=False) + model.covariance.numpy()) / 2
    expected = math.sqrt(difference @ np.linalg.pinv(covariance) @ difference)
    assert niqe.score(flat, model) == pytest.approx(expected, rel=1e-6)


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


@pytest.mark.skipif(not VALIDATION.is_dir(), reason="needs the validation photographs")
def test_niqe_prefers_validation_photos_as_they_are() -> None:
    model, images = niqe.NiqeModel.load(), [opened(file) for file in sorted(VALIDATION.glob("*.png"))[::2]]
    as_they_are = np.mean([niqe.score(to_tensor(image), model) for image in images])
    for kind, spoil in SPOIL.items():
        assert as_they_are < np.mean([niqe.score(to_tensor(spoil(image)), model) for image in images]) - 0.3, kind
