"""LPIPS on VGG16 and DISTS, on random weights, against their formulas written out in NumPy and plain torch layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.measures import dists, vgg
from onestep_sr.sr_models.measures.dists import Dists
from onestep_sr.sr_models.measures.evaluate import find_distances
from onestep_sr.sr_models.measures.lpips import Lpips
from safetensors.torch import save_file
from torch import Tensor, nn

LAYOUT = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)  # arXiv 1409.1556, D
TAPPED = (3, 8, 15, 22, 29)  # the ReLU before each pooling, and the last
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def layers(generator: torch.Generator) -> nn.Sequential:
    """VGG16's `features` in torchvision's numbering, with random weights."""
    made, inputs = [], 3
    for width in LAYOUT:
        if width == "M":
            made.append(nn.MaxPool2d(2))
            continue
        convolution = nn.Conv2d(inputs, int(width), 3, padding=1)
        with torch.no_grad():
            convolution.weight.copy_(
                torch.randn(convolution.weight.shape, generator=generator) * (2 / 9 / inputs) ** 0.5
            )
            convolution.bias.copy_(torch.randn(int(width), generator=generator) * 0.1)
        made += [convolution, nn.ReLU()]
        inputs = int(width)
    return nn.Sequential(*made).requires_grad_(False)


@pytest.fixture(scope="module")
def features() -> nn.Sequential:
    return layers(torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(features: nn.Sequential, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, generator = tmp_path_factory.mktemp("perceptual"), torch.Generator().manual_seed(1)
    weights = {f"features.{name}": weight.half() for name, weight in features.state_dict().items()}
    save_file(weights, path / "vgg16-features.safetensors")
    features.load_state_dict({name.removeprefix("features."): w.float() for name, w in weights.items()})
    lines = {
        f"lin{i}.model.1.weight": torch.rand(1, w, 1, 1, generator=generator) for i, w in enumerate(vgg.Vgg16.widths)
    }
    torch.save(lines, path / "vgg.pth")
    numbers = {name: torch.rand(1, 1475, 1, 1, generator=generator) for name in ("alpha", "beta")}
    save_file(numbers, path / "dists.safetensors")
    return path


def pictures() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    first = torch.rand(2, 3, 40, 36, generator=generator)
    return first, (first + 0.2 * torch.rand(2, 3, 40, 36, generator=generator)).clamp(0, 1)


def normalised(picture: Tensor) -> Tensor:
    return (picture - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]


def test_lpips_on_vgg_equals_its_formula(features: nn.Sequential, folder: Path) -> None:
    ours, theirs = pictures()
    weights = torch.load(folder / "vgg.pth", weights_only=True)
    hidden, expected = [normalised(picture) for picture in (ours, theirs)], 0.0
    for number, layer in enumerate(features):
        hidden = [layer(each) for each in hidden]
        if number in TAPPED:
            u, v = (each.numpy() / np.sqrt((each.numpy() ** 2).sum(1, keepdims=True) + 1e-20) for each in hidden)
            weight = weights[f"lin{TAPPED.index(number)}.model.1.weight"].numpy()
            expected += (weight * (u - v) ** 2).sum(1).mean()
    assert float(Lpips.load(folder, "vgg")(ours * 2 - 1, theirs * 2 - 1)) == pytest.approx(expected, rel=1e-4)


def l2_pooled(x: np.ndarray) -> np.ndarray:
    """Equation 1, pixel by pixel: the root of the Hann-weighted mean of squares, zero outside the map."""
    window = np.outer([1, 2, 1], [1, 2, 1]) / 16
    height, width = ((side + 1) // 2 for side in x.shape[2:])
    squared = np.pad(x.astype(np.float64) ** 2, ((0, 0), (0, 0), (1, 2), (1, 2)))
    result = np.zeros((*x.shape[:2], height, width))
    for row in range(height):
        for column in range(width):
            part = squared[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            result[:, :, row, column] = np.sqrt((part * window).sum((2, 3)))
    return result


def test_dists_equals_its_formula(features: nn.Sequential, folder: Path) -> None:
    ours, theirs = pictures()
    hidden = [normalised(picture) for picture in (ours, theirs)]
    maps = [(ours.numpy(), theirs.numpy())]
    for number, layer in enumerate(features):
        if isinstance(layer, nn.MaxPool2d):
            hidden = [torch.from_numpy(l2_pooled(each.numpy())).float() for each in hidden]
        else:
            hidden = [layer(each) for each in hidden]
        if number in TAPPED:
            maps.append((hidden[0].numpy(), hidden[1].numpy()))
    loaded = Dists.load(folder)
    alpha, beta = (np.split(t.double().numpy(), np.cumsum(dists.CHANNELS)[:-1]) for t in (loaded.alpha, loaded.beta))
    total, expected = sum(a.sum() + b.sum() for a, b in zip(alpha, beta, strict=True)), np.ones(2)
    for (x, y), a, b in zip(maps, alpha, beta, strict=True):
        x, y = x.astype(np.float64), y.astype(np.float64)  # noqa: PLW2901
        (mx, my), (vx, vy) = ([p.mean((2, 3)) for p in (x, y)], [p.var((2, 3)) for p in (x, y)])
        covariance = ((x - mx[..., None, None]) * (y - my[..., None, None])).mean((2, 3))
        luminance = (2 * mx * my + 1e-6) / (mx**2 + my**2 + 1e-6)
        structure = (2 * covariance + 1e-6) / (vx + vy + 1e-6)
        expected -= ((a * luminance).sum(1) + (b * structure).sum(1)) / total
    assert loaded(ours, theirs).numpy() == pytest.approx(expected, abs=2e-4)
    assert loaded(ours, ours).abs().max() < 1e-5


def test_several_pictures_against_one_are_compared_as_pairs(folder: Path) -> None:
    first, second, truth = torch.rand(3, 1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    dists, lpips = Dists.load(folder), Lpips.load(folder, "vgg")
    for pair, against in ((dists, dists.against(truth)), (lpips.of_unit_range, lpips.against(truth))):
        for ours in (first, second, first):
            assert float(against(ours)) == pytest.approx(float(pair(ours, truth)), rel=1e-5)


def test_distances_are_those_whose_weights_exist(folder: Path, tmp_path: Path) -> None:
    assert find_distances(None) == {}
    with pytest.raises(UserError, match="does not contain torchvision's AlexNet"):
        find_distances(folder)


@pytest.mark.parametrize(
    ("name", "load"), [("dists.safetensors", Dists.load), ("vgg16-features.safetensors", vgg.Vgg16.load)]
)
def test_a_file_of_another_kind_is_named(name: str, load, folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file({"features.0.weight": torch.zeros(3)}, tmp_path / name)
    with pytest.raises(UserError, match=rf"{name} does not contain"):
        load(tmp_path)
