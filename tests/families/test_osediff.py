"""OSEDiff: both layouts of its file, its equation in float64, and what possible mistakes would give."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import small_peft
import small_unet
import torch
from onestep_sr.sr_models.canvas.color import match
from onestep_sr.sr_models.canvas.resize import resize
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.diffusers_host.lora import open_lora
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families.bases import unet_kind
from onestep_sr.sr_models.families.catalogue import describe
from onestep_sr.sr_models.families.convert import convert
from onestep_sr.sr_models.families.osediff import FAMILY, RECIPE
from onestep_sr.sr_models.families.registry import read_lora
from onestep_sr.sr_models.files.picture import Picture
from onestep_sr.sr_models.files.read import read_picture
from onestep_sr.sr_models.files.write import write_picture
from safetensors import safe_open
from torch import Tensor

TOLERANCE = 1e-4
PROMPT = "a lake, a house, "
AS_LARGE = UpscaleOptions(1)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("osediff")
    base = small_unet.write(folder / "base", "2.1-base")
    small_peft.calm_output(base)
    content = small_peft.osediff(base)
    torch.save(content, folder / "osediff.pkl")
    whole = small_peft.merged(base, content)
    torch.save(whole, folder / "whole.pkl")
    return {"base": base, "lora": folder / "osediff.pkl", "whole": folder / "whole.pkl", "content": content}


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are not enlarged to 512 px, which would take long."""
    monkeypatch.setitem(FAMILY.recipes, RECIPE.name, replace(RECIPE, shortest=0))


@pytest.fixture(scope="module")
def image() -> Tensor:
    """Smooth, as the colour match compares means and deviations."""
    noise = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    return (resize(noise, (32, 48)).clamp(0, 1) * (2**16 - 1)).round() / (2**16 - 1)


@torch.no_grad()
def equation(
    case: dict,
    image: Tensor,
    *,
    timestep: int = 999,
    prompt: str = PROMPT,
    scale: float = small_peft.SCALE,
    color: str = "adain",
    left_out: str = "",
) -> Tensor:
    """z_0 = (z - .997667 e) / .068265, z = .18215 E(x), then D(z_0 / .18215) with the input's colours, in float64.
    What may be passed by name are the places for mistakes."""
    unet, vae = small_peft.osediff_networks(case["base"], case["content"], scale, left_out)
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    alpha, sigma = alphas[timestep].sqrt(), (1 - alphas[timestep]).sqrt()
    assert timestep != 999 or ((alpha - 0.068265).abs() < 1e-6 and (sigma - 0.997667).abs() < 1e-6)
    z = 0.18215 * vae.encode(image.double() * 2 - 1).latent_dist.mode()
    e = unet(z, timestep, encoder_hidden_states=small_peft.encoded(case["base"], prompt).double()).sample
    result = (vae.decode((z - sigma * e) / alpha / 0.18215).sample / 2 + 0.5).clamp(0, 1).float()
    return match(result, image, color).clamp(0, 1)


@pytest.fixture(scope="module")
def truth(case, image) -> Tensor:
    result = equation(case, image)
    assert result.std() > 0.02 and (result == result.clamp(0.01, 0.99)).float().mean() > 0.5, "something to compare"
    return result


@pytest.mark.parametrize("file", ["lora", "whole"])
def test_each_layout_gives_what_the_equation_says(case, image, truth, file) -> None:
    result = upscale(open_lora(case["base"], case[file], prompt=PROMPT, dtype=torch.float32).model, image, AS_LARGE)
    assert (result - truth).abs().max() < TOLERANCE


def test_the_command_line_gives_what_the_equation_says(case, image, truth, tmp_path, capsys) -> None:
    files = ("--base", case["base"], "--lora", case["lora"], "--prompt", PROMPT)
    assert (small_peft.on_the_command_line(image, tmp_path, *files) - truth).abs().max() < TOLERANCE
    assert "Licence of OSEDiff: Apache-2.0" in capsys.readouterr().out


def test_each_picture_has_the_text_next_to_it_as_its_prompt(case, image, truth, tmp_path, capsys) -> None:
    """And the one without a text has that of --prompt. A text that changes makes its picture anew."""
    pictures, results = tmp_path / "in", tmp_path / "out"
    pictures.mkdir()
    for name in ("boat", "lake"):
        write_picture(pictures / f"{name}.png", Picture(image[0], bits=16))
    for text, done in (("a boat", 2), ("a ship", 1)):
        (pictures / "boat.txt").write_text(f"{text}\n", encoding="utf-8-sig")
        options = ("--base", case["base"], "--lora", case["lora"], "--prompt", PROMPT, "--captions")
        small_peft.upscale_files(pictures, results, *options)
        said = capsys.readouterr()
        assert f"{done} done, {2 - done} skipped" in said.out and "left out" not in said.err
        boat, lake = (read_picture(results / f"{name}.png").pixels[None] for name in ("boat", "lake"))
        assert (boat - equation(case, image, prompt=text)).abs().max() < TOLERANCE
        assert (lake - truth).abs().max() < TOLERANCE


def test_texts_next_to_pictures_are_refused_where_the_prompt_is_fixed(case) -> None:
    lora = replace(read_lora(case["lora"]), family=replace(FAMILY, prompt_is_fixed=True))
    with pytest.raises(UserError, match="OSEDiff has a fixed prompt: remove --captions"):
        lora.with_captions()


def test_the_single_file_gives_the_same_result(case, image, truth, tmp_path) -> None:
    path = tmp_path / "osediff.safetensors"
    assert convert(case["lora"], path) == "OSEDiff: U-Net and VAE encoder LoRA, rank 4"
    with safe_open(path, "pt") as file:
        found = file.metadata()
    assert {key: found[key] for key in ("onestep_sr_family", "rank", "alpha")} == {
        "onestep_sr_family": "osediff",
        "rank": "4",
        "alpha": "8",
    }
    result = upscale(open_lora(case["base"], path, prompt=PROMPT, dtype=torch.float32).model, image, AS_LARGE)
    assert (result - truth).abs().max() < TOLERANCE


MISTAKES: dict[str, dict[str, Any]] = {
    "timestep 998": {"timestep": 998},
    "timestep 1": {"timestep": 1},
    "scale 1 in place of 8 / r": {"scale": 1.0},
    "VAE LoRA ignored": {"left_out": "VAE"},
    "quant_conv's LoRA ignored": {"left_out": "quant_conv"},
    "conv_in not replaced": {"left_out": "conv_in replaced"},
    "conv_in's LoRA ignored": {"left_out": "conv_in.lora"},
    "empty prompt": {"prompt": ""},
    "no colours": {"color": "none"},
    "colours by wavelet": {"color": "wavelet"},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_would_show(case, image, truth, mistake) -> None:
    assert (equation(case, image, **MISTAKES[mistake]) - truth).abs().max() > 5 * TOLERANCE


# Files


def test_both_layouts_are_recognised_and_complete(case) -> None:
    assert describe(case["lora"]) == "OSEDiff: U-Net and VAE encoder LoRA, rank 4"
    assert describe(case["whole"]) == "OSEDiff: whole U-Net and VAE"
    lora, whole = read_lora(case["lora"]), read_lora(case["whole"])
    assert str(lora.base) == str(whole.base) == "Stable Diffusion 2.1 with epsilon prediction"
    assert sorted(lora.replaced) == ["conv_in.bias", "conv_in.weight"]
    for [adapter], table in ((lora.network, "state_dict_unet"), (lora.vae, "state_dict_vae")):
        keys = [key for key in case["content"][table] if ".lora_A." in key]
        assert sorted(adapter.update) == sorted(key.split(".lora_A.")[0] for key in keys)
        assert {layer.scale for layer in adapter.update.values()} == {small_peft.SCALE}
    assert "quant_conv" in lora.vae[0].update and "conv_in" in lora.network[0].update
    assert not whole.network and not whole.vae


def _drop(table: str, key: str) -> Callable[[dict], object]:
    return lambda content: content[table].pop(key)


BROKEN: dict[str, tuple[str, Callable[[dict], object], str]] = {
    "half": ("lora", _drop("state_dict_vae", "quant_conv.lora_B.default_encoder.weight"), "lacks quant_conv.lora_B"),
    "conv_in": ("lora", _drop("state_dict_unet", "conv_in.base_layer.bias"), r"lacks conv_in\.base_layer\.bias"),
    "listed": ("lora", lambda c: c["vae_lora_encoder_modules"].append("encoder.gone"), r"lists \(encoder\.gone\)"),
    "part without lists": (
        "lora",
        lambda c: small_peft.without_lists(c, "state_dict_unet", "conv_out"),
        r"is incomplete: 1 of the \d+ modules of the base's U-Net .*\(conv_out\)",
    ),
    "VAE part without lists": (
        "lora",
        lambda c: small_peft.without_lists(c, "state_dict_vae", "encoder.conv_out"),
        r"is incomplete: 1 of the \d+ modules of the base's VAE .*\(encoder\.conv_out\)",
    ),
    "other weights": ("lora", lambda c: c["state_dict_unet"].update({"x.weight": torch.zeros(1)}), "not a LoRA's"),
    "not whole": ("whole", _drop("unet", "conv_out.bias"), r"lacks 1 weights of the base \(conv_out\.bias\)"),
    "VAE not whole": ("whole", _drop("vae", "decoder.conv_out.bias"), r"weights of the base \(decoder\.conv_out"),
    "unknown": ("whole", lambda c: c["unet"].update({"x.weight": torch.zeros(1)}), "the base has no x.weight"),
    "other tables": ("whole", lambda c: c.update({"ema": {"x": torch.zeros(1)}}), r"does not have \(ema/x\)"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_every_key_has_its_module_or_the_file_is_refused(case, tmp_path, kind) -> None:
    layout, change, words = BROKEN[kind]
    content = copy.deepcopy(case["content"] if layout == "lora" else torch.load(case["whole"]))
    change(content)
    torch.save(content, tmp_path / "osediff.pkl")
    with pytest.raises(UserError, match=words):
        open_lora(case["base"], tmp_path / "osediff.pkl", dtype=torch.float32)


LACKING = {
    "a module": ("lora", "network/unet/conv_out.", r"1 of the \d+ modules of the base's U-Net .*\(conv_out\)"),
    "VAE module": ("lora", "vae/vae/quant_conv.", r"1 of the \d+ modules of the base's VAE .*\(quant_conv\)"),
    "the VAE's LoRA": ("lora", "vae/", r"is incomplete \(it lacks vae/vae/\): convert it again"),
    "the U-Net's LoRA": ("lora", "network/", r"is incomplete \(it lacks network/unet/\): convert it again"),
    "conv_in": ("lora", "replaced/network/conv_in.bias", r"it lacks replaced/network/conv_in\.bias"),
    "the VAE": ("whole", "replaced/vae/", r"is incomplete \(it lacks replaced/vae/\): convert it again"),
    "a weight": ("whole", "replaced/network/conv_out.bias", r"lacks 1 weights of the base \(conv_out\.bias\)"),
}


@pytest.mark.parametrize("kind", LACKING)
def test_a_converted_file_that_lacks_keys_is_refused(case, tmp_path, kind) -> None:
    layout, lacking, words = LACKING[kind]
    convert(case[layout], tmp_path / "whole.safetensors")
    small_peft.without(tmp_path / "whole.safetensors", lacking, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=words):
        open_lora(case["base"], tmp_path / "part.safetensors", dtype=torch.float32)


def test_another_base_is_refused_with_both_names(case) -> None:
    lora = read_lora(case["lora"])
    for kind, title in ((unet_kind(768, "epsilon"), "1.5 with epsilon"), (unet_kind(1024, "v"), "2.1 with v")):
        words = f"is an OSEDiff LoRA for Stable Diffusion 2.1 with epsilon prediction, but the base is .*{title}"
        with pytest.raises(UserError, match=words):
            lora.require_base(kind, "the base")
