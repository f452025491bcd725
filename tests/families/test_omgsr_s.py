"""OMGSR-S: its published folders, its equation in float64, and what possible mistakes would give."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_peft
import small_unet
import torch
from onestep_sr.sr_models.canvas.color import ColorMatch
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.diffusers_host.lora import open_lora
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families.bases import unet_kind
from onestep_sr.sr_models.families.catalogue import describe
from onestep_sr.sr_models.families.convert import convert
from onestep_sr.sr_models.families.omgsr_s import CONFIG, FAMILY, FILES, RECIPE
from onestep_sr.sr_models.families.registry import files_with, read_lora
from safetensors import safe_open
from torch import Tensor

TOLERANCE = 1e-4
AS_LARGE = UpscaleOptions(1)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("omgsr")
    base = small_unet.write(folder / "base", "2.1-base")
    content = small_peft.omgsr(base)
    lora = small_peft.write_omgsr(folder / "omgsr-s-512-adapter", content)
    return {"base": base, "lora": lora, "content": content, "image": small_peft.smooth_image()}


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are not enlarged to 512 px, which would take long."""
    monkeypatch.setitem(FAMILY.recipes, RECIPE.name, replace(RECIPE, shortest=0))


def equation(
    case: dict,
    *,
    timestep: int = 273,
    prompt: str = "",
    scales: tuple[float, float] = (1.0, 1.0),
    color: ColorMatch = "adain",
    left_out: str = "nothing",
    tiled: bool = False,
) -> Tensor:
    """z_0 = (z - .603537 e) / .797335, in float64. What may be passed by name are the places for mistakes."""
    unet, vae = small_peft.opened(case["base"])
    for network, part, scale in zip((unet, vae.encoder), ("unet", "vae"), scales, strict=True):
        tensors = case["content"][part].items()
        small_peft.add_lora(network, {name: t for name, t in tensors if not name.startswith(left_out)}, "", scale)
    condition = small_peft.encoded(case["base"], prompt)
    return small_peft.one_step((unet, vae), condition, case["image"], timestep, color, tiled=tiled)


@pytest.fixture(scope="module")
def truth(case) -> Tensor:
    alpha, sigma = small_peft.roots(273)
    assert (alpha - 0.797335).abs() < 1e-6 and (sigma - 0.603537).abs() < 1e-6
    result = equation(case)
    assert result.std() > 0.02 and (result == result.clamp(0.01, 0.99)).float().mean() > 0.5, "something to compare"
    return result


def opened(case: dict, **options):
    return open_lora(case["base"], case["lora"], dtype=torch.float32, **options)


@pytest.mark.parametrize("file", ["", *FILES])
def test_the_folder_and_each_of_its_files_give_what_the_equation_says(case, truth, file) -> None:
    result = upscale(opened(case | {"lora": case["lora"] / file}).model, case["image"], AS_LARGE)
    assert (result - truth).abs().max() < TOLERANCE


def test_the_command_line_gives_what_the_equation_says(case, truth, tmp_path, capsys) -> None:
    files = ("--base", case["base"], "--lora", case["lora"])
    assert (small_peft.on_the_command_line(case["image"], tmp_path, *files) - truth).abs().max() < TOLERANCE
    assert "Licence of OMGSR-S: not stated by its authors" in capsys.readouterr().out


def test_the_single_file_gives_the_same_result(case, tmp_path) -> None:
    path = tmp_path / "omgsr.safetensors"
    assert convert(case["lora"], path) == "OMGSR-S: U-Net and VAE encoder LoRA, rank 16, 32"
    with safe_open(path, "pt") as file:
        assert file.metadata() == {
            "onestep_sr_family": "omgsr-s",
            "base": "Stable Diffusion 2.1 with epsilon prediction",
            "rank": "16, 32",
            "alpha": "16, 32",
            "licence": FAMILY.licence,
        }
    results = [upscale(opened(case | {"lora": lora}).model, case["image"], AS_LARGE) for lora in (path, case["lora"])]
    assert torch.equal(*results)


def test_in_tiles_it_is_the_equation_of_each_tile_blended(case, truth) -> None:
    result = upscale(opened(case).model, case["image"], UpscaleOptions(1, **small_peft.IN_TILES))
    assert (result - equation(case, tiled=True)).abs().max() < TOLERANCE
    assert (result - truth).abs().max() > 5 * TOLERANCE


MISTAKES: dict[str, dict[str, Any]] = {
    "timestep 274": {"timestep": 274},
    "timestep 244": {"timestep": 244},
    "scale 8 / r in the U-Net": {"scales": (8 / 32, 1.0)},
    "scale 8 / r in the VAE": {"scales": (1.0, 8 / 16)},
    "U-Net LoRA ignored": {"scales": (0.0, 1.0)},
    "VAE LoRA ignored": {"scales": (1.0, 0.0)},
    "LoRA of conv_in ignored": {"left_out": "conv_in"},
    "a prompt": {"prompt": "a lake, a house"},
    "no colours": {"color": "none"},
    "colours by wavelet": {"color": "wavelet"},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_would_show(case, truth, mistake) -> None:
    assert (equation(case, **MISTAKES[mistake]) - truth).abs().max() > 5 * TOLERANCE


# Files


def test_the_published_files_are_recognised_and_complete(case) -> None:
    assert [describe(case["lora"] / file) for file in FILES] == [
        "OMGSR-S: U-Net LoRA, rank 32",
        "OMGSR-S: VAE encoder LoRA, rank 16",
    ]
    lora = read_lora(case["lora"])
    for [adapter], part, prefix in ((lora.network, "unet", ""), (lora.vae, "vae", "encoder.")):
        keys = [key for key in case["content"][part] if ".lora_A." in key]
        assert sorted(adapter.update) == sorted(prefix + key.split(".lora_A.")[0] for key in keys)
        assert {layer.scale for layer in adapter.update.values()} == {1.0}
    assert "conv_in" in lora.network[0].update and not any("ff.net" in name for name in lora.network[0].update)
    assert {case["lora"] / file for file in FILES} <= set(files_with(case["lora"] / FILES[1])), "watched for changes"


def test_alpha_is_what_the_description_states(case, tmp_path) -> None:
    folder = small_peft.write_omgsr(tmp_path, case["content"])
    config = (folder / FILES[0]).with_name(CONFIG)
    for text, scale in ((json.dumps({"lora_alpha": 8}), 8 / 32), (None, 1.0)):
        config.unlink() if text is None else config.write_text(text)
        assert {layer.scale for layer in read_lora(folder).network[0].update.values()} == {scale}
    for text in ("{", "{}", "[]", '{"lora_alpha": "x"}'):
        config.write_text(text)
        with pytest.raises(UserError, match=r"adapter_config\.json has a broken description"):
            read_lora(folder)


def _drop(part: str, module: str) -> Callable[[dict], object]:
    return lambda content: [content[part].pop(key) for key in list(content[part]) if module in key]


BROKEN: dict[str, tuple[Callable[[dict], object], str]] = {
    "half": (_drop("vae", "conv_out.lora_B"), "lacks conv_out.lora_B"),
    "part of the U-Net": (_drop("unet", "conv_out"), r"is incomplete: 1 of .* of the base's U-Net .*\(conv_out\)"),
    "part of the VAE": (_drop("vae", "conv_out"), r"is incomplete: 1 of .* the base's VAE .*\(encoder\.conv_out\)"),
    "unknown": (
        lambda c: c["vae"].update({"x.lora_A.weight": torch.ones(1, 4), "x.lora_B.weight": torch.ones(4, 1)}),
        r"lacks 1 of the LoRA's modules \(encoder\.x\)",
    ),
    "other weights": (lambda c: c["unet"].update({"conv_in.bias": torch.zeros(1)}), r"not a LoRA's \(conv_in\.bias"),
    "two U-Nets": (lambda c: c.update(vae=c["unet"]), "is not OMGSR-S's vae_encoder_lora_adapter"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_every_key_has_its_module_or_the_folder_is_refused(case, tmp_path, kind) -> None:
    change, words = BROKEN[kind]
    content = copy.deepcopy(case["content"])
    change(content)
    with pytest.raises(UserError, match=words):
        opened(case | {"lora": small_peft.write_omgsr(tmp_path, content)})


@pytest.mark.parametrize("left", [0, 1])
def test_one_part_alone_is_refused(case, tmp_path, left) -> None:
    folder = small_peft.write_omgsr(tmp_path, case["content"])
    (folder / FILES[1 - left]).unlink()
    with pytest.raises(UserError, match=r"one part of an OMGSR-S LoRA, but .* does not exist"):
        read_lora(folder / FILES[left])
    other = case["lora"] / FILES[1 - left]
    assert read_lora(folder / FILES[left], Path(other)).name == "unet_lora_adapter/adapter_model.safetensors"


def test_another_base_is_refused_with_both_names(case) -> None:
    lora = read_lora(case["lora"])
    for kind, title in ((unet_kind(768, "epsilon"), "1.5 with epsilon"), (unet_kind(1024, "v"), "2.1 with v")):
        words = f"is an OMGSR-S LoRA for Stable Diffusion 2.1 with epsilon prediction, but the base is .*{title}"
        with pytest.raises(UserError, match=words):
            lora.require_base(kind, "the base")
