"""HYPIR: its published file, its equation in float64, and what possible mistakes would give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
from onestep_sr.sr_models.families.hypir import FAMILY, RECIPE
from onestep_sr.sr_models.families.registry import read_lora
from safetensors import safe_open
from torch import Tensor

TOLERANCE = 1e-4
AS_LARGE = UpscaleOptions(1)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("hypir")
    base = small_unet.write(folder / "base", "2.1-base")
    content = small_peft.hypir(base)
    torch.save(content, folder / "HYPIR_sd2.pth")
    return {"base": base, "lora": folder / "HYPIR_sd2.pth", "content": content, "image": small_peft.smooth_image()}


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are not enlarged to 512 px, which would take long."""
    monkeypatch.setitem(FAMILY.recipes, RECIPE.name, replace(RECIPE, shortest=0))


def equation(
    case: dict,
    *,
    timestep: int = 200,
    prompt: str = "",
    scale: float = 1.0,
    color: ColorMatch = "wavelet",
    left_out: str | None = None,
    tiled: bool = False,
) -> Tensor:
    """z_0 = (z - .496294 e) / .868154, in float64. What may be passed by name are the places for mistakes."""
    unet, vae = small_peft.opened(case["base"])
    tensors = {name: t for name, t in case["content"].items() if left_out is None or left_out not in name}
    small_peft.add_lora(unet, tensors, "", scale)
    condition = small_peft.encoded(case["base"], prompt)
    return small_peft.one_step((unet, vae), condition, case["image"], timestep, color, tiled=tiled)


@pytest.fixture(scope="module")
def truth(case) -> Tensor:
    alpha, sigma = small_peft.roots(200)
    assert (alpha - 0.868154).abs() < 1e-6 and (sigma - 0.496294).abs() < 1e-6
    result = equation(case)
    assert result.std() > 0.02 and (result == result.clamp(0.01, 0.99)).float().mean() > 0.5, "something to compare"
    return result


def opened(case: dict, **options):
    return open_lora(case["base"], case["lora"], dtype=torch.float32, **options)


@pytest.mark.parametrize("prompt", [None, "a lake, a house"])
def test_the_file_gives_what_the_equation_says(case, truth, prompt) -> None:
    result = upscale(opened(case, prompt=prompt).model, case["image"], AS_LARGE)
    assert (result - (truth if prompt is None else equation(case, prompt=prompt))).abs().max() < TOLERANCE


def test_the_command_line_gives_what_the_equation_says(case, truth, tmp_path, capsys) -> None:
    files = ("--base", case["base"], "--lora", case["lora"])
    assert (small_peft.on_the_command_line(case["image"], tmp_path, *files) - truth).abs().max() < TOLERANCE
    assert "HYPIR may not be used commercially. Its licence: HYPIR Software License" in capsys.readouterr().out


def test_the_single_file_gives_the_same_result(case, tmp_path) -> None:
    path = tmp_path / "hypir.safetensors"
    assert convert(case["lora"], path) == "HYPIR: U-Net LoRA, rank 16"
    with safe_open(path, "pt") as file:
        assert file.metadata() == {
            "onestep_sr_family": "hypir",
            "base": "Stable Diffusion 2.1 with epsilon prediction",
            "rank": "16",
            "alpha": "16",
            "licence": FAMILY.licence,
        }
    results = [upscale(opened(case | {"lora": lora}).model, case["image"], AS_LARGE) for lora in (path, case["lora"])]
    assert torch.equal(*results)


def test_in_tiles_it_is_the_equation_of_each_tile_blended(case, truth) -> None:
    result = upscale(opened(case).model, case["image"], UpscaleOptions(1, **small_peft.IN_TILES))
    assert (result - equation(case, tiled=True)).abs().max() < TOLERANCE
    assert (result - truth).abs().max() > 5 * TOLERANCE


MISTAKES: dict[str, dict[str, Any]] = {
    "timestep 201": {"timestep": 201},
    "timestep 999": {"timestep": 999},
    "scale 8 / r in place of 1": {"scale": 8 / small_peft.HYPIR_RANK},
    "LoRA of convolutions ignored": {"left_out": "conv"},
    "conv_out's LoRA ignored": {"left_out": "conv_out"},
    "LoRA of feed-forward layers ignored": {"left_out": ".ff.net."},
    "a prompt": {"prompt": "a lake, a house"},
    "no colours": {"color": "none"},
    "colours by AdaIN": {"color": "adain"},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_would_show(case, truth, mistake) -> None:
    assert (equation(case, **MISTAKES[mistake]) - truth).abs().max() > 5 * TOLERANCE


def test_the_published_file_is_recognised_and_complete(case) -> None:
    assert describe(case["lora"]) == "HYPIR: U-Net LoRA, rank 16"
    lora = read_lora(case["lora"])
    [adapter] = lora.network
    assert sorted(adapter.update) == sorted(key.split(".lora_A.")[0] for key in case["content"] if ".lora_A." in key)
    assert {layer.scale for layer in adapter.update.values()} == {1.0}
    assert not lora.vae and "conv_in" not in adapter.update


def _rename(content: dict) -> None:
    for half in "AB":
        content[f"elsewhere.lora_{half}.default.weight"] = content.pop(f"conv_out.lora_{half}.default.weight")
    content["conv_out.lora_A.default.weight"] = torch.zeros(4, 32, 3, 3)
    content["conv_out.lora_B.default.weight"] = torch.zeros(4, 4, 1, 1)


def _drop(module: str) -> Callable[[dict], object]:
    return lambda content: [content.pop(key) for key in list(content) if module in key]


BROKEN: dict[str, tuple[Callable[[dict], object], str]] = {
    "half": (_drop("conv_out.lora_B"), "lacks conv_out.lora_B"),
    "elsewhere": (_rename, r"lacks 1 of the LoRA's modules \(elsewhere\)"),
    "part": (_drop("proj_out"), r"is incomplete: 4 of the \d+ modules of the base's U-Net"),
    "twice": (
        lambda c: c.update({key.replace("default", "x"): tensor for key, tensor in c.items() if "conv_out" in key}),
        r"changes conv_out twice",
    ),
    "other weights": (lambda c: c.update({"conv_in.weight": torch.zeros(1)}), "not a LoRA's"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_every_key_has_its_module_or_the_file_is_refused(case, tmp_path, kind) -> None:
    change, words = BROKEN[kind]
    content = dict(case["content"])
    change(content)
    torch.save(content, tmp_path / "HYPIR_sd2.pth")
    with pytest.raises(UserError, match=words):
        opened(case | {"lora": tmp_path / "HYPIR_sd2.pth"})


def test_a_single_file_that_lacks_modules_is_refused(case, tmp_path) -> None:
    lora = read_lora(case["lora"])
    [network] = lora.network
    part = {module: layer for module, layer in network.update.items() if module != "conv_out"}
    FAMILY.save(tmp_path / "part.safetensors", replace(lora, network=(replace(network, update=part),)))
    with pytest.raises(UserError, match=r"is incomplete: 1 of .* of the base's U-Net .*\(conv_out\)"):
        opened(case | {"lora": tmp_path / "part.safetensors"})


def test_another_base_is_refused_with_both_names(case) -> None:
    lora = read_lora(case["lora"])
    for kind, title in ((unet_kind(768, "epsilon"), "1.5 with epsilon"), (unet_kind(1024, "v"), "2.1 with v")):
        words = f"is a HYPIR LoRA for Stable Diffusion 2.1 with epsilon prediction, but the base is .*{title}"
        with pytest.raises(UserError, match=words):
            lora.require_base(kind, "the base")
