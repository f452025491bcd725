"""GDPO-SR: its published folder, its equation in float64, and what possible mistakes would give."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_peft
import small_unet
import torch
from onestep_sr.sr_models.canvas.color import ColorMatch
from onestep_sr.sr_models.canvas.noise import canvas_noise
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.diffusers_host.lora import open_lora
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families.bases import unet_kind
from onestep_sr.sr_models.families.catalogue import describe
from onestep_sr.sr_models.families.convert import convert
from onestep_sr.sr_models.families.gdpo_sr import FAMILY, FILES, RECIPE
from onestep_sr.sr_models.families.registry import read_lora
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

TOLERANCE = 1e-4
SEED = 7
FIXED = "clean, high-resolution, 8k,"
PROMPT = f"a lake, a house, {FIXED}"
AS_LARGE = UpscaleOptions(1, seed=SEED)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("gdpo")
    base = small_unet.write(folder / "base", "2.1-base")
    lora = small_peft.write_gdpo(base, folder / "GDPOSR")
    return {"base": base, "lora": lora, "image": small_peft.smooth_image()}


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are not enlarged to 512 px, which would take long."""
    monkeypatch.setitem(FAMILY.recipes, RECIPE.name, replace(RECIPE, shortest=0))


def equation(
    case: dict,
    *,
    timestep: int = 100,
    noise_timestep: int = 250,
    amount: float = 1.0,
    seed: int = SEED,
    prompt: str = PROMPT,
    color: ColorMatch = "adain",
    of_base: int | None = None,
    tiled: bool = False,
) -> Tensor:
    """z_n = .820849 z + .571146 n, z_0 = (z_n - .325233 e) / .945634, in float64. What may be passed by name are the
    places for mistakes; `of_base`: the network that is left as in the base, 0 for the U-Net."""
    networks = list(small_peft.opened(case["lora"]))
    if of_base is not None:
        networks[of_base] = small_peft.opened(case["base"])[of_base]
    alpha, sigma = small_peft.roots(noise_timestep)

    def noised(z: Tensor) -> Tensor:
        return alpha * z + amount * sigma * canvas_noise(z.float(), seed).double()

    condition = small_peft.encoded(case["base"], prompt)
    return small_peft.one_step(
        (networks[0], networks[1]), condition, case["image"], timestep, color, noised, tiled=tiled
    )


@pytest.fixture(scope="module")
def truth(case) -> Tensor:
    for timestep, roots in ((100, (0.945634, 0.325233)), (250, (0.820849, 0.571146))):
        assert all((a - b).abs() < 1e-6 for a, b in zip(small_peft.roots(timestep), roots, strict=True))
    result = equation(case)
    assert result.std() > 0.02 and (result == result.clamp(0.01, 0.99)).float().mean() > 0.5, "something to compare"
    return result


def opened(case: dict, prompt: str | None = PROMPT):
    return open_lora(case["base"], case["lora"], prompt=prompt, dtype=torch.float32)


@pytest.mark.parametrize("file", ["", *FILES])
def test_the_folder_and_each_of_its_files_give_what_the_equation_says(case, truth, file) -> None:
    result = upscale(opened(case | {"lora": case["lora"] / file}).model, case["image"], AS_LARGE)
    assert (result - truth).abs().max() < TOLERANCE


def test_without_tags_the_prompt_is_the_fixed_text(case) -> None:
    result = upscale(opened(case, None).model, case["image"], AS_LARGE)
    assert (result - equation(case, prompt=FIXED)).abs().max() < TOLERANCE


def test_the_command_line_gives_what_the_equation_says(case, truth, tmp_path, capsys) -> None:
    files = ("--base", case["base"], "--lora", case["lora"], "--prompt", PROMPT, "--seed", SEED)
    assert (small_peft.on_the_command_line(case["image"], tmp_path, *files) - truth).abs().max() < TOLERANCE
    assert "Licence of GDPO-SR: Apache-2.0" in capsys.readouterr().out


def test_the_single_file_gives_the_same_result(case, tmp_path) -> None:
    path = tmp_path / "gdpo.safetensors"
    assert convert(case["lora"], path) == "GDPO-SR: whole U-Net and VAE"
    with safe_open(path, "pt") as file:
        assert file.metadata() == {
            "onestep_sr_family": "gdpo-sr",
            "base": "Stable Diffusion 2.1 with epsilon prediction",
            "licence": FAMILY.licence,
        }
    results = [upscale(opened(case | {"lora": lora}).model, case["image"], AS_LARGE) for lora in (path, case["lora"])]
    assert torch.equal(*results)


def test_in_tiles_it_is_the_equation_of_each_tile_blended(case, truth) -> None:
    result = upscale(opened(case).model, case["image"], UpscaleOptions(1, seed=SEED, **small_peft.IN_TILES))
    assert (result - equation(case, tiled=True)).abs().max() < TOLERANCE
    assert (result - truth).abs().max() > 5 * TOLERANCE


MISTAKES: dict[str, dict[str, Any]] = {
    "network at t = 250": {"timestep": 250},
    "network at t = 101": {"timestep": 101},
    "noise of t = 100": {"noise_timestep": 100},
    "noise of t = 251": {"noise_timestep": 251},
    "no noise": {"amount": 0.0},
    "another seed's noise": {"seed": SEED + 1},
    "U-Net of the base": {"of_base": 0},
    "VAE of the base": {"of_base": 1},
    "no fixed text": {"prompt": "a lake, a house,"},
    "no tags": {"prompt": FIXED},
    "no colours": {"color": "none"},
    "colours by wavelet": {"color": "wavelet"},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_would_show(case, truth, mistake) -> None:
    assert (equation(case, **MISTAKES[mistake]) - truth).abs().max() > 5 * TOLERANCE


def test_tiles_have_the_noise_of_their_place(case) -> None:
    """Overlapping tiles start from the same noise, so they blend into nearly the untiled result."""
    model = opened(case).model
    whole = upscale(model, case["image"], AS_LARGE)
    tiled = upscale(model, case["image"], replace(AS_LARGE, tile=32, overlap=16))
    assert (tiled - whole).abs().mean() < 0.5 * (equation(case, seed=SEED + 1) - whole).abs().mean()


# Files


def test_the_published_files_are_recognised(case) -> None:
    assert {describe(case["lora"] / file) for file in FILES} == {"GDPO-SR: whole U-Net and VAE"}
    lora = read_lora(case["lora"])
    assert (str(lora.base), lora.network, lora.vae) == ("Stable Diffusion 2.1 with epsilon prediction", (), ())


def test_a_whole_pipeline_is_not_taken_for_it(case) -> None:
    assert "is a diffusion model without the rest" in describe(case["base"] / FILES[0])
    assert "is a VAE" in describe(case["base"] / FILES[1])
    words = r"does not contain s3diff\.pkl or transformer\.safetensors or unet\.safetensors: choose .* one as --base"
    with pytest.raises(UserError, match=words):
        read_lora(case["base"])


def test_one_network_alone_is_not_taken_for_it(case, tmp_path) -> None:
    (tmp_path / "unet").mkdir()
    shutil.copy(case["lora"] / FILES[0], tmp_path / "unet")
    assert "is a diffusion model without the rest" in describe(tmp_path / FILES[0])
    with pytest.raises(UserError, match="GDPO-SR needs its folder vae next to its folder unet"):
        read_lora(tmp_path)
    (tmp_path / "vae").mkdir()
    with pytest.raises(UserError, match=r"vae/diffusion_pytorch_model\.safetensors does not exist"):
        read_lora(tmp_path)


def _without(source: Path, folder: Path, file: str, name: str) -> Path:
    shutil.copytree(source, folder)
    tensors = load_file(folder / file)
    del tensors[name]
    save_file(tensors, folder / file)
    return folder


@pytest.mark.parametrize(("file", "name"), [(FILES[0], "conv_out.bias"), (FILES[1], "decoder.conv_out.bias")])
def test_an_incomplete_network_is_refused(case, tmp_path, file, name) -> None:
    with pytest.raises(UserError, match=rf"lacks 1 weights of the base \({name}\): download it again"):
        opened(case | {"lora": _without(case["lora"], tmp_path / "part", file, name)})


def test_another_base_is_refused_with_both_names(case) -> None:
    lora = read_lora(case["lora"])
    for kind, title in ((unet_kind(768, "epsilon"), "1.5 with epsilon"), (unet_kind(1024, "v"), "2.1 with v")):
        words = f"is a GDPO-SR LoRA for Stable Diffusion 2.1 with epsilon prediction, but the base is .*{title}"
        with pytest.raises(UserError, match=words):
            lora.require_base(kind, "the base")
