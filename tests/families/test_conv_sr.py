"""The file format of networks from picture to picture, and running one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families import conv_sr
from onestep_sr.sr_models.families.catalogue import describe
from onestep_sr.sr_models.families.loading import load
from onestep_sr.sr_models.networks.conv_sr import ConvSR, ConvSRConfig
from safetensors.torch import load_file, save_file


@pytest.fixture
def network() -> ConvSR:
    torch.manual_seed(0)
    made = ConvSR(ConvSRConfig(16, 2))
    torch.nn.init.normal_(made.out.weight, std=0.02)
    return made


@pytest.fixture
def file(network: ConvSR, tmp_path: Path) -> Path:
    conv_sr.save(tmp_path / "mine.safetensors", network, dtype=torch.float32)
    return tmp_path / "mine.safetensors"


def test_a_file_gives_the_network_back(network: ConvSR, file: Path) -> None:
    found = conv_sr.read_one(file)
    assert found.config == network.config
    assert all(torch.equal(weight, found.get_parameter(name)) for name, weight in network.named_parameters())
    assert describe(file) == "One-Step SR network, x4, 16 channels, 2 blocks"


@pytest.mark.parametrize(("height", "width"), [(8, 8), (23, 40)])
@pytest.mark.parametrize("seed", [0, 7])
def test_upscaling_is_the_network_itself(network: ConvSR, file: Path, height: int, width: int, seed: int) -> None:
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(image).clamp(0, 1)
    assert (upscale(load(file).model, image, UpscaleOptions(4, seed=seed)) - expected).abs().max() < 1e-5


def test_tiles_blend_without_a_trace(file: Path) -> None:
    """Tiles share more than the network sees, so that only their weights' rounding remains between them."""
    image = torch.rand(1, 3, 60, 90, generator=torch.Generator().manual_seed(1))
    whole, tiled = (upscale(load(file).model, image, UpscaleOptions(4, tile, 112)) for tile in (1024, 224))
    inner = slice(48, -48)  # tiles begin with the canvas's border only at its own
    assert (whole - tiled)[..., inner, inner].abs().mean() < 1e-3


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"network": {"channels": 16}, "x": ' + "[" * 100_000, '{"network": {"depth": 3}}']
    + [json.dumps({"network": {"channels": c, "blocks": b}}) for c, b in ((10**9, 2), (16, 10**9), (18, 2), (16, 0))],
)
def test_a_broken_description_is_named(text: str, file: Path) -> None:
    save_file(load_file(file), file, metadata={conv_sr.METADATA_KEY: text})
    for opening in (load, describe, conv_sr.read):
        try:
            sentence = str(opening(file))
        except UserError as error:
            sentence = str(error)
        assert "mine.safetensors has a broken description" in sentence


def test_another_file_is_not_read(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="was not created by `onestep-sr train faithful`"):
        conv_sr.read(tmp_path / "other.safetensors")


@pytest.fixture
def ends(network: ConvSR, tmp_path: Path) -> Path:
    """A file with two sets of weights and the default position 0.25."""
    torch.manual_seed(1)
    second = ConvSR(network.config)
    torch.nn.init.normal_(second.out.weight, std=0.02)
    conv_sr.save(tmp_path / "ends.safetensors", conv_sr.Ends(network, second, 0.25), dtype=torch.float32)
    return tmp_path / "ends.safetensors"


def mixed_by_hand(file: Path, position: float) -> ConvSR:
    weights = load_file(file)
    network = ConvSR(ConvSRConfig(16, 2))
    first = {name: weight for name, weight in weights.items() if not name.startswith("detailed.")}
    mixture = {n: w.double() + position * (weights[f"detailed.{n}"].double() - w.double()) for n, w in first.items()}
    network.load_state_dict({name: weight.float() for name, weight in mixture.items()})
    return network


@pytest.mark.parametrize("position", [None, 0.0, 0.25, 0.6, 1.0])
def test_detail_mixes_the_weights(ends: Path, position: float | None) -> None:
    image = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = mixed_by_hand(ends, 0.25 if position is None else position)(image).clamp(0, 1)
    found = upscale(load(ends).model, image, UpscaleOptions(detail=position))
    assert (found - expected).abs().max() < 1e-5
    assert describe(ends).endswith("faithful to detailed")


def test_weights_are_mixed_once_per_setting(ends: Path, monkeypatch) -> None:
    model, mixtures, mix = load(ends).model, [], conv_sr.interpolated

    def counted(first: ConvSR, second: ConvSR, share: float) -> ConvSR:
        mixtures.append(share)
        return mix(first, second, share)

    monkeypatch.setattr(conv_sr, "interpolated", counted)
    image = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    for position in (0.5, 0.5, 0.75):
        upscale(model, image, UpscaleOptions(detail=position, tile=64, overlap=16))
    assert mixtures == [0.5, 0.75]


@pytest.mark.parametrize("position", [-0.1, 1.01, float("nan")])
def test_detail_out_of_bounds_is_refused(file: Path, ends: Path, position: float) -> None:
    for path in (file, ends):
        with pytest.raises(UserError, match=r"Detail .* is out of bounds"):
            upscale(load(path).model, torch.zeros(1, 3, 8, 8), UpscaleOptions(detail=position))


def test_a_model_with_one_set_of_weights_has_no_detail(file: Path) -> None:
    image = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(1))
    model = load(file).model
    assert torch.equal(upscale(model, image, UpscaleOptions(detail=0.2)), upscale(model, image))


@pytest.mark.parametrize("detail", ['"much"', "2", "[1]", "null", "1e400"])
def test_a_broken_default_is_named(detail: str, ends: Path) -> None:
    text = f'{{"network": {{"channels": 16, "blocks": 2}}, "detail": {detail}}}'
    save_file(load_file(ends), ends, metadata={conv_sr.METADATA_KEY: text})
    with pytest.raises(UserError, match=r"ends\.safetensors has a broken description"):
        load(ends)


@pytest.mark.parametrize("lost", ["out.bias", "detailed.out.bias"])
def test_both_sets_must_be_complete(lost: str, ends: Path) -> None:
    text = '{"network": {"channels": 16, "blocks": 2}, "detail": 0.5}'
    kept = {name: weight for name, weight in load_file(ends).items() if name != lost}
    save_file(kept, ends, metadata={conv_sr.METADATA_KEY: text})
    with pytest.raises(UserError, match="is not a complete"):
        load(ends)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_it_runs_in_half_precision(file: Path, dtype: torch.dtype) -> None:
    image = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    half, whole = (upscale(load(file, dtype=each).model, image) for each in (dtype, torch.float32))
    assert (half - whole).abs().max() < 0.05
