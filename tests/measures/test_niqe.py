"""NIQE, against its equations written out in numpy."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from onestep_sr.sr_models.canvas.degradation import add_noise, blur, gaussian_kernel, jpeg
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.measures import niqe
from onestep_sr.sr_models.measures.metrics import grey
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
