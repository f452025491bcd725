"""This project's own files: written, read and rejected."""

import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from onestep_sr.sr_models.checkpoints.weights_file import fill, read_weights
from onestep_sr.sr_models.core.schedule import ResShiftSchedule
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families import bundled
from onestep_sr.sr_models.families.catalogue import describe
from onestep_sr.sr_models.families.loading import load
from onestep_sr.sr_models.networks.swin_unet import SwinUNet, SwinUNetConfig
from safetensors.torch import save_file

SMALL = bundled.Description(
    SwinUNetConfig(48, 3, 32, (1, 1), 1, 32, window=4, native_size=8, bicubic_skip=4),
    ResShiftSchedule(steps=4, kappa=0.5, min_noise=0.2),
    card="made by a test",
)


@pytest.fixture
def own_file(tmp_path) -> Path:
    path = tmp_path / "mine.safetensors"
    bundled.save(path, small_network(), SMALL)
    return path


def small_network() -> SwinUNet:
    network = SwinUNet(SMALL.network)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.1)
    return network


def refusal(path: Path, named: str | None = None, **options) -> str:
    """The sentence with which `load` refuses a file: one line that names the file and says what to do."""
    with pytest.raises(UserError) as caught:
        load(path, **options)
    message = str(caught.value)
    assert re.fullmatch(r"[^\n]+: (download|choose|check|copy|get)[^\n]+\.", message), message
    assert ". " not in message
    assert (named or path.name) in message
    return message


def test_an_own_file_comes_back_as_it_was_saved(own_file):
    network = small_network()
    loaded = load(own_file)
    (back,) = loaded.modules
    assert back.config == SMALL.network
    saved = dict(network.named_parameters())
    for name, parameter in back.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, saved[name].half().float())
    recipe = loaded.model.recipe
    assert recipe.step.schedule == SMALL.schedule
    assert recipe.step.evaluations == 1
    assert (recipe.name, recipe.scale, recipe.tile, recipe.multiple) == ("mine", 4, 32, 8)
    assert (loaded.model.codec.factor, loaded.model.codec.latent_channels) == (4, 48)
    assert describe(own_file) == "One-Step SR model, x4, 1 evaluation(s)"


def test_a_loaded_own_network_computes_what_the_saved_one_does(own_file):
    network = small_network().half().float().eval()
    latent, condition = torch.rand(1, 48, 8, 16), torch.rand(1, 3, 8, 16)
    with torch.no_grad():
        expected = network(latent, condition, torch.tensor([3]))
    result = load(own_file).model.denoiser(latent, condition, torch.tensor([3]))
    assert torch.allclose(result, expected, atol=1e-4)


def test_an_own_file_holds_half_precision_weights_and_its_description(own_file):
    file = read_weights(own_file)
    assert {tensor.dtype for tensor in file.tensors.values()} == {torch.float16}
    assert file.tensors.keys() == {name for name, _ in small_network().named_parameters()}
    assert bundled.describe(file) == SMALL
    assert [path.name for path in own_file.parent.iterdir()] == [own_file.name]


def test_a_teacher_keeps_its_number_of_evaluations(tmp_path):
    path = tmp_path / "teacher.safetensors"
    bundled.save(path, small_network(), replace(SMALL, evaluations=4))
    assert load(path).model.recipe.step.evaluations == 4


def test_an_own_file_is_replaced_and_never_written_into(own_file, tmp_path):
    """A hard link to the old file and a network that maps it both keep the old weights."""
    before = own_file.read_bytes()
    os.link(own_file, tmp_path / "old")
    bundled.save(own_file, small_network(), replace(SMALL, card="another"), torch.float32)
    assert bundled.describe(read_weights(own_file)).card == "another"
    assert (tmp_path / "old").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {own_file.name, "old"}


def test_an_own_network_is_built_without_memory_and_filled_in_place(own_file):
    file = read_weights(own_file)
    network = bundled.build(bundled.describe(file))
    assert all(parameter.is_meta for parameter in network.parameters())
    fill(network, file, "One-Step SR", torch.float16)
    for name, parameter in network.named_parameters():
        assert parameter.data_ptr() == file.tensors[name].data_ptr()


def description_with(part: str | None, **changes) -> str:
    fields = asdict(SMALL)
    (fields[part] if part else fields).update(changes)
    return json.dumps(fields)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"network": "large"}',
        description_with(None, evaluations=7),
        description_with(None, evaluations="some"),
        description_with(None, schedule=None),
        description_with("network", multipliers=3),
        description_with("network", depth=3),
        description_with("network", bicubic_skip=0),
        description_with("schedule", steps=1),
        description_with("schedule", kappa="strong"),
    ],
)
def test_an_own_file_with_a_broken_description(own_file, text):
    save_file(read_weights(own_file).tensors, own_file, metadata={bundled.METADATA_KEY: text})
    assert "broken description" in refusal(own_file)


def test_an_own_file_whose_weights_do_not_fit_its_description(own_file):
    tensors = dict(read_weights(own_file).tensors)
    tensors["stray"] = tensors.pop("out.2.bias")
    save_file(tensors, own_file, metadata={bundled.METADATA_KEY: SMALL.to_json()})
    message = refusal(own_file)
    assert "lacks 1 weights (out.2.bias)" in message
    assert "has unknown 1 weights (stray)" in message


def test_an_own_file_with_a_weight_that_is_not_finite(own_file):
    tensors = {name: tensor.clone() for name, tensor in read_weights(own_file).tensors.items()}
    tensors["time_embed.0.bias"][3] = float("nan")
    save_file(tensors, own_file, metadata={bundled.METADATA_KEY: SMALL.to_json()})
    assert "time_embed.0.bias" in refusal(own_file)
