"""TAD-SeeSR's student on SeeSR's weights: what learns, what the discriminator sees, and the result's files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_peft
import small_seesr
import small_unet
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.diffusers_host.lora import open_lora
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families.registry import read_lora
from onestep_sr.sr_models.families.tad_seesr import FILES
from onestep_sr.sr_models.families.tagger import read_tagger
from onestep_sr.sr_models.training.sd.bases import open_base
from onestep_sr.sr_models.training.sd.seesr_base import SeeSRBase, Sight
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("seesr")
    small_seesr.write_networks(small_unet.write(root / "base", "2.1-base"), root / "seesr")
    small_peft.calm_output(root / "base")
    small_seesr.write_ram(root / "ram")
    return root


def opened(root: Path, **options: Any) -> SeeSRBase:
    base, seesr = open_base(root / "base", torch.float32), read_lora(root / "seesr")
    return SeeSRBase(base, seesr, read_tagger(root / "ram"), **options)


def shaken(base: SeeSRBase) -> SeeSRBase:
    generator = torch.Generator().manual_seed(3)
    for weight in base.student_parameters():
        weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    return base


@pytest.fixture
def base(root: Path) -> SeeSRBase:
    return opened(root)


@pytest.fixture
def inputs(base: SeeSRBase) -> tuple[torch.Tensor, torch.Tensor, Sight]:
    generator = torch.Generator().manual_seed(4)
    picture = torch.rand(2, 3, 64, 64, generator=generator)
    prompt = torch.randn(2, 77, 32, generator=generator)
    return torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([0, 500]), base.sight(prompt, picture, picture)


def test_what_learns_is_what_attends_to_the_picture_and_embeds_it(base) -> None:
    learning = {name for name, weight in base.named_parameters() if weight.requires_grad}
    assert len(learning) == len(base.student_parameters())
    kinds = {name.split(".learned.")[0].split(".")[-1] for name in learning}
    assert kinds == {"image", "controlnet_cond_embedding"}
    places = {name.split(".")[1] for name in learning if ".image." in name}
    assert places == {"unet", "control"} and all(".learned." in name for name in learning)


def test_the_published_size_has_the_published_number_of_weights_to_learn(root) -> None:
    """Stable Diffusion 2's networks with attentions to RAM's embedding, which is 512 wide, on the meta device."""
    small = open_base(root / "base", torch.float32)
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
        )
        control = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
        parts = []
        for network in (unet, control):
            tensors = dict(network.state_dict())
            for name, text in small_seesr.attentions(network).items():
                sizes = {key: value for key, value in text.config.items() if not key.startswith("_")}
                image = type(text)(**sizes | {"cross_attention_dim": 512})
                place = name.replace("attentions", "image_attentions")
                tensors |= {f"{place}.{key}": tensor for key, tensor in image.state_dict().items()}
            parts.append(tensors)
    images = {name: tensor for name, tensor in parts[0].items() if "image_attentions" in name}
    lora = replace(read_lora(root / "seesr"), replaced={}, image_attentions=images, control=parts[1])
    base = SeeSRBase(replace(small, network=unet), lora, read_tagger(root / "ram"))
    assert sum(weight.numel() for weight in base.student_parameters()) == 386_739_280
    assert base.feature_widths == [320, 640, 1280, 1280]


def test_the_student_starts_as_its_teacher_and_leaves_it_alone(base, inputs) -> None:
    z, _, sight = inputs
    first = torch.zeros(2, dtype=torch.long)
    path = z / (base.process.alpha[0] + base.process.sigma[0])
    before = base.teacher(path, first, sight)
    assert torch.allclose(base.student(z, sight), before, atol=1e-4)
    shaken(base)
    assert torch.equal(base.teacher(path, first, sight), before)
    assert (base.student(z, sight) - before).abs().max() > 0.1


def test_the_start_has_the_noise_of_t_999(base) -> None:
    z, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    assert torch.allclose(base.noised(z, noise), 0.068265 * z + 0.997667 * noise, atol=1e-5)


def test_the_discriminator_sees_skips_with_the_control_nets_part(base, inputs) -> None:
    z, index, sight = inputs
    seen: dict[str, list] = {"down": [], "control": []}
    for block in base.network.unet.down_blocks:
        block.register_forward_hook(lambda module, args, output: seen["down"].append(output[1][0]))
    base.network.control.register_forward_hook(lambda module, args, output: seen["control"].extend(output[0]))
    maps = base.features(z, index, sight)
    expected = [seen["down"][level] + seen["control"][1 + 2 * level] for level in range(2)]  # one layer a level
    assert [tuple(each.shape) for each in maps] == [(2, 32, 8, 8), (2, 64, 4, 4)]
    assert all(torch.equal(found, wanted) for found, wanted in zip(maps, expected, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_the_student_and_nothing_else(base, inputs, checkpointing) -> None:
    if checkpointing:
        base.enable_gradient_checkpointing()
    z, _, sight = inputs
    base.student(z, sight).square().mean().backward()
    assert all(weight.grad is not None for weight in base.student_parameters())
    assert not any(weight.grad is not None for weight in base.parameters() if not weight.requires_grad)


def test_the_files_are_the_published_ones(root, base, tmp_path) -> None:
    base.save(tmp_path)
    for file in FILES:
        published, saved = load_file(root / "seesr" / file), load_file(tmp_path / file)
        assert published.keys() == saved.keys()
        assert all(torch.equal(published[name].half(), tensor) for name, tensor in saved.items())
    shaken(base).save(tmp_path)
    for file in FILES:
        published, saved = load_file(root / "seesr" / file), load_file(tmp_path / file)
        changed = {name for name in saved if not torch.equal(published[name].half(), saved[name])}
        assert changed == {name for name in saved if "image_attentions" in name or "cond_embedding" in name}


def test_a_base_in_fp8_teaches_nearly_the_same_and_the_student_is_exact(root, base, inputs, tmp_path) -> None:
    rough = opened(root, fp8=True)
    for exact, weight in zip(shaken(base).student_parameters(), shaken(rough).student_parameters(), strict=True):
        assert torch.equal(exact, weight) and weight.dtype == torch.float32
    frozen = [weight.dtype for weight in rough.network.parameters() if not weight.requires_grad and weight.ndim == 2]
    assert set(frozen) == {torch.float8_e4m3fn}
    assert rough.settings()["frozen"] != base.settings()["frozen"]
    z, index, sight = inputs
    with torch.no_grad():
        expected = base.teacher(z, index, sight)
        assert 0 < (rough.teacher(z, index, sight) - expected).norm() / expected.norm() < 0.1
    rough.enable_gradient_checkpointing()
    rough.student(z, sight).square().mean().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in rough.student_parameters())
    for made, folder in ((base, tmp_path / "exact"), (rough, tmp_path / "rough")):
        made.save(folder)
    for file in FILES:
        first, second = load_file(tmp_path / "exact" / file), load_file(tmp_path / "rough" / file)
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_student_of_the_teacher_can_be_the_start(root, base, inputs, tmp_path) -> None:
    shaken(base).save(tmp_path / "mine")
    again = opened(root, start=tmp_path / "mine")
    z, index, sight = inputs
    with torch.no_grad():
        assert torch.equal(again.teacher(z, index, sight), base.teacher(z, index, sight))
        expected = base.student(z, sight)
        assert (again.student(z, sight) - expected).abs().max() < 0.01 * expected.abs().max()
    assert again.settings()["start"] == "mine" and again.settings()["frozen"] == base.settings()["frozen"]


@pytest.mark.parametrize(("part", "name"), [(0, "conv_in.bias"), (1, "time_embedding.linear_1.bias")])
def test_the_student_of_another_teacher_is_refused(root, base, tmp_path, part, name) -> None:
    base.save(tmp_path / "mine")
    tensors = load_file(tmp_path / "mine" / FILES[part])
    save_file(tensors | {name: tensors[name] + 1}, tmp_path / "mine" / FILES[part])
    words = rf"mine/unet.* is not a student of seesr/unet.*, which has other weights .* \({name}\): give its own"
    with pytest.raises(UserError, match=words):
        opened(root, start=tmp_path / "mine")


def test_the_settings_are_those_of_the_networks(base, tmp_path) -> None:
    """diffusers builds the base's part of each network from them."""
    base.save(tmp_path)
    for part, kind in (("unet", UNet2DConditionModel), ("controlnet", ControlNetModel)):
        settings = json.loads((tmp_path / part / "config.json").read_text())
        assert settings.pop("use_image_cross_attention") is True
        built: Any = kind.from_config(settings)
        saved = load_file(tmp_path / part / FILES[0].rpartition("/")[2])
        assert {name: each.shape for name, each in built.state_dict().items()} == {
            name: each.shape for name, each in saved.items() if "image_attentions" not in name
        }


def test_the_result_is_what_was_trained(root, base, inputs, tmp_path) -> None:
    """`upscale` with the saved files gives the student's step. Its prompt has the tags, so it is encoded here too."""
    shaken(base).save(tmp_path / "mine")
    image = small_peft.smooth_image()
    lora = read_lora(tmp_path / "mine").with_tagger(root / "ram")
    model = open_lora(root / "base", lora, dtype=torch.float32).model
    prompt = model.conditioner(image, 0).prompt[:, :77]
    with torch.no_grad():
        z_lr = base.encode(image * 2 - 1)
        noise = torch.randn(z_lr.shape, generator=torch.Generator().manual_seed(5))
        z_s = base.student(base.noised(z_lr, noise), base.sight(prompt, image, image))
        step = model.recipe.step
        found = model.denoiser.run(
            lambda network: step(network, z_lr, noise, image * 2 - 1), tuple(z_lr.shape), model.conditioner(image, 0)
        )
    assert (found - z_s).abs().max() < 0.02 * z_s.abs().max(), "but for half precision of the files"
    model = replace(model, recipe=replace(model.recipe, shortest=0))
    assert torch.isfinite(upscale(model, image, UpscaleOptions(1))).all()


def test_another_base_is_refused(root, tmp_path) -> None:
    other = open_base(small_unet.write(tmp_path / "base", "2.1"), torch.float32)
    with pytest.raises(UserError, match="with a U-Net with v prediction: use"):
        SeeSRBase(other, read_lora(root / "seesr"), read_tagger(root / "ram"))
