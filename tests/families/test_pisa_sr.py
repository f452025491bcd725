"""PiSA-SR: its published file, its equation in float64, its two strengths, and what possible mistakes would give."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_peft
import small_sd3
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
from onestep_sr.sr_models.families.pisa_sr import FAMILY, RECIPE
from onestep_sr.sr_models.families.registry import read_lora
from safetensors import safe_open
from torch import Tensor

TOLERANCE = 1e-4
PUBLISHED = (1.0, 1.0)
TWO_RUNS = (2.0, 0.5)
AS_LARGE = UpscaleOptions(1)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("pisa")
    base = small_unet.write(folder / "base", "2.1-base")
    content = small_peft.pisa_sr(base)
    torch.save(content, folder / "pisa_sr.pkl")
    return {"base": base, "lora": folder / "pisa_sr.pkl", "content": content}


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are not enlarged to 512 px, which would take long."""
    monkeypatch.setitem(FAMILY.recipes, RECIPE.name, replace(RECIPE, shortest=0))


@pytest.fixture(scope="module")
def image() -> Tensor:
    """Smooth, as the colour match compares means and deviations."""
    noise = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    return (resize(noise, (32, 48)).clamp(0, 1) * (2**16 - 1)).round() / (2**16 - 1)


def opened(case: dict, strengths: tuple[float, float] = PUBLISHED, **options):
    named = dict(zip(("pixel", "semantic"), strengths, strict=True))
    return open_lora(case["base"], read_lora(case["lora"]).at(named), dtype=torch.float32, **options)


# The equation


@torch.no_grad()
def equation(
    case: dict,
    image: Tensor,
    pixel: float = 1.0,
    semantic: float = 1.0,
    *,
    timestep: int = 1,
    prompt: str = "",
    scale: float = small_peft.SCALE,
    color: str = "adain",
    names: tuple[str, str] = ("_pix", "_sem"),
) -> Tensor:
    """z_0 = z - [p e_pix + s (e_both - e_pix)], z = .18215 E(x), then D(z_0 / .18215) with the input's colours: in
    float64, each network from its own merged weights. What may be passed by name are the places for mistakes."""
    unet, vae = small_peft.opened(case["base"])
    tensors, outputs = case["content"]["state_dict_unet"], []
    z = 0.18215 * vae.encode(image.double() * 2 - 1).latent_dist.mode()
    for name in names:
        small_peft.add_lora(unet, tensors, name, scale)
        condition = small_peft.encoded(case["base"], prompt).double()
        outputs.append(unet(z, timestep, encoder_hidden_states=condition).sample)
    e_pixel, e_both = outputs
    z_0 = z - (pixel * e_pixel + semantic * (e_both - e_pixel))
    result = (vae.decode(z_0 / 0.18215).sample / 2 + 0.5).clamp(0, 1).float()
    return match(result, image, color).clamp(0, 1)


@pytest.mark.parametrize("strengths", [PUBLISHED, TWO_RUNS, (0.0, 1.5), (1.3, 0.0), (0.5, 0.5), (0.0, 0.0)])
def test_each_pair_of_strengths_gives_what_the_equation_says(case, image, strengths) -> None:
    result = upscale(opened(case, strengths).model, image, AS_LARGE)
    assert (result - equation(case, image, *strengths)).abs().max() < TOLERANCE
    assert result.std() > 0.02, "not a flat picture"


def test_the_command_line_gives_what_the_equation_says(case, image, tmp_path, capsys) -> None:
    files = ("--base", case["base"], "--lora", case["lora"])
    for options, strengths in (((), PUBLISHED), (("--strength.pixel", 2, "--strength.semantic", 0.5), TWO_RUNS)):
        result = small_peft.on_the_command_line(image, tmp_path, *files, *options)
        assert (result - equation(case, image, *strengths)).abs().max() < TOLERANCE
    assert "Licence of PiSA-SR: Apache-2.0" in capsys.readouterr().out


MISTAKES: dict[str, dict[str, Any]] = {
    "timestep 999": {"timestep": 999},
    "timestep 0": {"timestep": 0},
    "scale 1 in place of 8 / r": {"scale": 1.0},
    "pixel LoRA ignored": {"names": ("_none", "_sem")},
    "semantic LoRA ignored": {"names": ("_pix", "_none")},
    "pixel and semantic LoRA exchanged": {"names": ("_sem", "_pix")},
    "pixel and semantic strength exchanged": {"pixel": 0.5, "semantic": 2.0},
    "TSD-SR's prompt": {"prompt": "Cinematic, High Contrast"},
    "no colours": {"color": "none"},
    "colours by wavelet": {"color": "wavelet"},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_would_show(case, image, mistake) -> None:
    truth = equation(case, image, *TWO_RUNS)
    wrong = equation(case, image, **{"pixel": 2.0, "semantic": 0.5} | MISTAKES[mistake])
    assert (wrong - truth).abs().max() > 5 * TOLERANCE


# Strengths


class Counted:
    """Counts the runs of a network."""

    def __init__(self, call: Callable[..., Tensor]):
        self.call, self.networks = call, []

    def __call__(self, network: Any, *inputs: Tensor) -> Tensor:
        self.networks.append(id(network))
        return self.call(network, *inputs)


@pytest.mark.parametrize(("strengths", "runs"), [(PUBLISHED, 1), (TWO_RUNS, 2), ((0.5, 0.5), 1), ((1.5, 0.0), 1)])
def test_the_network_runs_once_where_that_is_enough(case, image, monkeypatch, strengths, runs) -> None:
    from onestep_sr.sr_models.diffusers_host import unet

    counted = Counted(unet.call_unet)
    monkeypatch.setattr(unet, "call_unet", counted)
    model, reports = opened(case, strengths).model, []
    upscale(model, image, AS_LARGE, progress=lambda done, total, preview: reports.append((done, total)))
    assert len(counted.networks) == runs == len(set(counted.networks))
    assert reports == [(done + 1, runs) for done in range(runs)]


def test_strengths_change_without_reading_files_again(case, image, tmp_path) -> None:
    away = {name: Path(case[name]) for name in ("base", "lora")}
    model = opened(case)
    expected = {pair: equation(case, image, *pair) for pair in (TWO_RUNS, (0.0, 1.5), PUBLISHED)}
    for name, path in away.items():
        path.rename(tmp_path / name)
    try:
        for pair, truth in expected.items():
            for adapter, strength in zip(model.adapters, pair, strict=True):
                adapter.set_strength(strength)
            assert [(adapter.name, adapter.strength) for adapter in model.adapters] == [
                ("pixel", pair[0]),
                ("semantic", pair[1]),
            ]
            assert (upscale(model.model, image, AS_LARGE) - truth).abs().max() < TOLERANCE
    finally:
        for name, path in away.items():
            (tmp_path / name).rename(path)


def test_strengths_that_it_does_not_have_are_refused(case) -> None:
    with pytest.raises(UserError, match="PiSA-SR has no strength 'detail': choose one of pixel, semantic"):
        read_lora(case["lora"]).at({"detail": 1.0})
    with pytest.raises(UserError, match=r"Strength semantic is 2\.5: choose a value from 0 to 2"):
        opened(case, (1.0, 2.5))
    with pytest.raises(UserError, match="Strength pixel is nan"):
        opened(case, (float("nan"), 1.0))


# Tiles and sizes


def test_two_passes_blend_like_one(case, image) -> None:
    """The sum of the passes is taken after blending, which is linear."""
    options = UpscaleOptions(1, tile=32, overlap=16, color="none")
    together = upscale(opened(case, (1.5, 0.5)).model, image, options)
    bare = upscale(opened(case, (0.0, 0.0)).model, image, options)
    assert (together - bare).abs().max() > 10 * TOLERANCE
    whole = upscale(opened(case, (1.5, 0.5)).model, image, UpscaleOptions(1, color="none"))
    assert (together - whole).abs().mean() < 0.1 and together.shape == whole.shape


@pytest.mark.parametrize(("size", "scale"), [((34, 25), 4.0), ((25, 33), 2.3)])
def test_the_result_has_exactly_the_asked_size(case, size, scale) -> None:
    picture = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    result = upscale(opened(case, TWO_RUNS).model, picture, UpscaleOptions(scale))
    assert result.shape[-2:] == tuple(round(scale * side) for side in size)


# Files


def test_the_published_file_is_recognised_and_complete(case) -> None:
    assert describe(case["lora"]) == "PiSA-SR: pixel and semantic U-Net LoRA, rank 4"
    lora = read_lora(case["lora"])
    assert (lora.family.name, str(lora.base)) == ("pisa-sr", "Stable Diffusion 2.1 with epsilon prediction")
    halves = case["content"]["state_dict_unet"]
    for adapter, ending in zip(lora.network, ("_pix.weight", "_sem.weight"), strict=True):
        assert sorted(adapter.update) == sorted(
            key.split(".lora_A.")[0] for key in halves if ".lora_A." in key and key.endswith(ending)
        )
        assert {layer.scale for layer in adapter.update.values()} == {small_peft.SCALE}


def changed(case: dict, path: Path, change: Callable[[dict], object]) -> Path:
    content = copy.deepcopy(case["content"])
    change(content)
    torch.save(content, path)
    return path


def _rename(content: dict) -> None:
    for half in "AB":
        key = f"conv_in.lora_{half}.default_encoder_sem.weight"
        content["state_dict_unet"][key.replace("conv_in", "conv_elsewhere")] = content["state_dict_unet"].pop(key)
    content["unet_lora_encoder_modules_sem"].remove("conv_in")


BROKEN: dict[str, tuple[Callable[[dict], object], str]] = {
    "half": (lambda c: c["state_dict_unet"].pop("conv_in.lora_B.default_encoder_pix.weight"), "lacks conv_in.lora_B"),
    "listed": (lambda c: c["unet_lora_others_modules_sem"].append("mid_block.gone"), r"lists \(mid_block.gone\)"),
    "unlisted": (_rename, r"lacks 1 of the LoRA's modules \(conv_elsewhere\)"),
    "no semantic": (
        lambda c: [c["state_dict_unet"].pop(key) for key in list(c["state_dict_unet"]) if key.endswith("_sem.weight")],
        "is incomplete",
    ),
    "part without lists": (
        lambda c: small_peft.without_lists(c, "state_dict_unet", "conv_out"),
        r"is incomplete: 1 of the \d+ modules of the base's U-Net .*\(conv_out\)",
    ),
    "other weights": (lambda c: c["state_dict_unet"].update({"conv_in.weight": torch.zeros(1)}), "not a LoRA's"),
    "other tables": (lambda c: c.update({"state_dict_vae": {"x": torch.zeros(1)}}), "state_dict_vae/x"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_every_key_has_its_module_or_the_file_is_refused(case, tmp_path, kind) -> None:
    change, words = BROKEN[kind]
    path = changed(case, tmp_path / "pisa_sr.pkl", change)
    with pytest.raises(UserError, match=words):
        open_lora(case["base"], path, dtype=torch.float32)


LACKING = {
    "a module": ("network/semantic/conv_out.", r"is incomplete: 1 of the \d+ modules .*\(conv_out\)"),
    "a half": ("network/pixel/conv_out.lora_A", r"is incomplete \(it lacks conv_out\.lora_A\.weight\)"),
    "a LoRA": ("network/semantic/", r"is incomplete \(it lacks network/semantic/\): convert it again"),
}


@pytest.mark.parametrize("kind", LACKING)
def test_a_converted_file_that_lacks_keys_is_refused(case, tmp_path, kind) -> None:
    lacking, words = LACKING[kind]
    convert(case["lora"], tmp_path / "whole.safetensors")
    small_peft.without(tmp_path / "whole.safetensors", lacking, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=words):
        open_lora(case["base"], tmp_path / "part.safetensors", dtype=torch.float32)


def test_another_base_is_refused_with_both_names(case, tmp_path) -> None:
    lora = read_lora(case["lora"])
    for kind, title in ((unet_kind(768, "epsilon"), "1.5 with epsilon"), (unet_kind(1024, "v"), "2.1 with v")):
        words = f"is a PiSA-SR LoRA for Stable Diffusion 2.1 with epsilon prediction, but the base is .*{title}"
        with pytest.raises(UserError, match=words):
            lora.require_base(kind, "the base")
    with pytest.raises(UserError, match=r"with epsilon prediction, but the base is .* with v prediction: use"):
        open_lora(small_unet.write(tmp_path / "v", "2.1"), case["lora"], dtype=torch.float32)
    sd3 = small_sd3.write(tmp_path / "sd3", small_unet.NARROW)
    with pytest.raises(UserError, match=r"but the base is Stable Diffusion 3 medium: use Stable Diffusion 2\.1"):
        open_lora(sd3.folder, case["lora"], prompt="", dtype=torch.float32)


def test_the_single_file_gives_the_same_result(case, image, tmp_path) -> None:
    path = tmp_path / "pisa.safetensors"
    assert convert(case["lora"], path) == "PiSA-SR: pixel and semantic U-Net LoRA, rank 4"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata == {
        "onestep_sr_family": "pisa-sr",
        "base": "Stable Diffusion 2.1 with epsilon prediction",
        "rank": "4",
        "alpha": "8",
        "licence": FAMILY.licence,
    }
    results = [upscale(opened(case | {"lora": lora}, TWO_RUNS).model, image, AS_LARGE) for lora in (path, case["lora"])]
    assert torch.equal(*results)
