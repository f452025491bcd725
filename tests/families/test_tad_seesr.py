"""TAD-SeeSR: its published folders, its equation in float64, and what possible mistakes would give."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_peft
import small_seesr
import small_unet
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from onestep_sr.sr_models.canvas.color import ColorMatch, match
from onestep_sr.sr_models.canvas.noise import canvas_noise
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.diffusers_host.lora import open_lora
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families import osediff
from onestep_sr.sr_models.families.catalogue import describe
from onestep_sr.sr_models.families.convert import convert
from onestep_sr.sr_models.families.registry import read_lora
from onestep_sr.sr_models.families.tad_seesr import FAMILY, FILES
from onestep_sr.sr_models.families.tagger import read_tagger
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

TOLERANCE = 1e-4
SEED = 7
TEXT = "a lake"
FIXED = "clean, high-resolution, 8k, extremely detailed, best quality, sharp"
AS_LARGE = UpscaleOptions(1, seed=SEED)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("seesr")
    base = small_unet.write(folder / "base", "2.1-base")
    small_peft.calm_output(base)
    lora = small_seesr.write_networks(base, folder / "tadsr")
    small_seesr.write_ram(folder / "ram")
    image = small_peft.smooth_image()
    small_seesr.write_thresholds(folder / "ram", image)
    return {"base": base, "lora": lora, "ram": folder / "ram", "image": image}


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are not enlarged to 512 px, which would take long."""
    for family in (FAMILY, osediff.FAMILY):
        for name, recipe in family.recipes.items():
            monkeypatch.setitem(family.recipes, name, replace(recipe, shortest=0))


def equation(
    case: dict,
    *,
    timestep: int = 999,
    start: Callable[[Tensor, Tensor], Tensor] | None = None,
    seed: int = SEED,
    prompt: str = "{tags}, {text}," + FIXED,
    unet_order: str = "text, image",
    control_order: str = "text, image",
    control_scale: float = 1.0,
    control_picture: Callable[[Tensor], Tensor] = lambda x: x,
    seen: Callable[[Tensor], Tensor] = lambda x: x,
    color: ColorMatch = "adain",
    further: tuple[int, ...] = (),
    new_noise: bool = True,
    shares: tuple[float, float] = (0.4, 0.4),
) -> Tensor:
    """z = .068265 z_lr + .997667 n, z_0 = (z - .997667 e) / .068265, in float64; `further` timesteps start from z_0
    with new noise, and see the result mixed with the picture. What may be passed by name are the places for mistakes,
    such as the `shares` of the result that the ControlNet and RAM see."""
    tagger, image = read_tagger(case["ram"]), case["image"]
    embedding = tagger.embedding(seen(image)).double()
    [tags] = tagger.tags(tagger.embedding(image))
    (unet, of_unet), (control, of_control) = small_seesr.networks(case["base"], case["lora"])
    small_seesr.look(unet, of_unet, embedding, unet_order)
    small_seesr.look(control, of_control, embedding, control_order)
    vae: Any = AutoencoderKL.from_pretrained(case["base"] / "vae").double()
    text = small_peft.encoded(case["base"], prompt.format(tags=tags, text=TEXT)).double()
    with torch.no_grad():
        z_lr = 0.18215 * vae.encode(image.double() * 2 - 1).latent_dist.mode()
        noises = canvas_noise(z_lr.float(), seed, 0, 1 + len(further)).double().chunk(1 + len(further), 1)
        alpha, sigma = small_peft.roots(timestep)
        z = alpha * z_lr + sigma * noises[0] if start is None else start(z_lr, noises[0])
        options: dict[str, Any] = {"encoder_hidden_states": text, "return_dict": False}

        def result_of(z: Tensor, timestep: int, picture: Tensor) -> tuple[Tensor, Tensor]:
            down, middle = control(
                z, timestep, controlnet_cond=control_picture(picture), conditioning_scale=control_scale, **options
            )
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            z_0 = (z - sigma * unet(z, timestep, **options, **residuals)[0]) / alpha
            return z_0, (vae.decode(z_0 / 0.18215).sample / 2 + 0.5).clamp(0, 1)

        z_0, result = result_of(z, timestep, image.double())
        for number, later in enumerate(further, 1):
            of_control, of_ram = (share * result + (1 - share) * image for share in shares)
            side = (tagger.network.side,) * 2
            embedding.copy_(tagger.embedding(F.interpolate(of_ram, side, mode="bicubic").float()))
            alpha, sigma = small_peft.roots(later)
            z = alpha * z_0 + sigma * noises[number if new_noise else 0]
            z_0, result = result_of(z, later, of_control)
    return match(result.clamp(0, 1).float(), image, color).clamp(0, 1)


@pytest.fixture(scope="module")
def truth(case) -> Tensor:
    assert all((a - b).abs() < 1e-6 for a, b in zip(small_peft.roots(999), (0.068265, 0.997667), strict=True))
    result = equation(case)
    assert result.std() > 0.02 and (result == result.clamp(0.01, 0.99)).float().mean() > 0.5, "something to compare"
    return result


def opened(case: dict, *, tagger: bool = True, prompt: str | None = TEXT, recipe: str | None = None):
    lora = read_lora(case["lora"]).with_tagger(case["ram"] if tagger else None)
    return open_lora(case["base"], lora, prompt=prompt, recipe=recipe, dtype=torch.float32)


@pytest.mark.parametrize("file", ["", *FILES])
def test_the_folder_and_each_of_its_files_give_what_the_equation_says(case, truth, file) -> None:
    result = upscale(opened(case | {"lora": case["lora"] / file}).model, case["image"], AS_LARGE)
    assert (result - truth).abs().max() < TOLERANCE


def test_from_noise_alone(case) -> None:
    result = upscale(opened(case, recipe="tad-seesr-noise").model, case["image"], AS_LARGE)
    assert (result - equation(case, start=lambda z, noise: noise)).abs().max() < TOLERANCE


def test_the_command_line_gives_what_the_equation_says(case, truth, tmp_path, capsys) -> None:
    files = ("--base", case["base"], "--lora", case["lora"], "--tagger", case["ram"], "--prompt", TEXT, "--seed", SEED)
    assert (small_peft.on_the_command_line(case["image"], tmp_path, *files) - truth).abs().max() < TOLERANCE
    printed = capsys.readouterr().out
    assert "Licence of TAD-SeeSR: Apache-2.0" in printed and "Licence of RAM and DAPE: Apache-2.0" in printed


def test_tiles_see_their_part_of_the_picture(case) -> None:
    """Two tiles at once give what each gives alone, and depend on the part of the picture that belongs to them."""
    model, generator = opened(case).model, torch.Generator().manual_seed(3)
    latent, lr = torch.randn(2, 4, 4, 4, generator=generator), torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    condition, timestep = model.conditioner(case["image"], 0), torch.full((2,), 999)

    def work(network) -> tuple[Tensor, ...]:
        both = network(latent, lr, timestep)
        alone = torch.cat([network(latent[i : i + 1], lr[i : i + 1], timestep[:1]) for i in range(2)])
        return both, alone, network(latent, lr.flip(0), timestep)

    both, alone, exchanged = model.denoiser.run(work, (2, 4, 4, 4), condition)
    assert (both - alone).abs().max() < 1e-5 < 1e-3 * (both - exchanged).abs().max()


S4: Any = {"further": (749, 499, 249)}


@pytest.fixture(scope="module")
def four_steps(case) -> Tensor:
    return equation(case, **S4)


def test_four_steps(case, four_steps, truth) -> None:
    result = upscale(opened(case, recipe="tad-seesr-s4").model, case["image"], AS_LARGE)
    assert (result - four_steps).abs().max() < TOLERANCE < 0.01 < (result - truth).abs().max()


def test_four_steps_from_noise_alone(case) -> None:
    result = upscale(opened(case, recipe="tad-seesr-noise-s4").model, case["image"], AS_LARGE)
    assert (result - equation(case, start=lambda z, noise: noise, **S4)).abs().max() < TOLERANCE


def test_each_of_four_steps_is_reported(case) -> None:
    reports = []
    model = opened(case, recipe="tad-seesr-s4").model
    upscale(model, case["image"], AS_LARGE, progress=lambda done, total, preview: reports.append((done, total)))
    assert reports == [(1, 4), (2, 4), (3, 4), (4, 4)]


MISTAKES_OF_FOUR: dict[str, dict[str, Any]] = {
    "three steps": {"further": (749, 499)},
    "timesteps of 1000": {"further": (750, 500, 250)},
    "the first noise again": {"new_noise": False},
    "the ControlNet sees the picture alone": {"shares": (0.0, 0.4)},
    "the ControlNet sees the result alone": {"shares": (1.0, 0.4)},
    "RAM sees the picture alone": {"shares": (0.4, 0.0)},
    "half of the result": {"shares": (0.5, 0.5)},
}


@pytest.mark.parametrize("mistake", MISTAKES_OF_FOUR)
def test_each_mistake_in_four_steps_would_show(case, four_steps, mistake) -> None:
    assert (equation(case, **S4 | MISTAKES_OF_FOUR[mistake]) - four_steps).abs().max() > 2 * TOLERANCE


MISTAKES: dict[str, dict[str, Any]] = {
    "network at t = 998": {"timestep": 998},
    "start from noise alone": {"start": lambda z, noise: noise},
    "start from the LR's latent": {"start": lambda z, noise: z},
    "another seed's noise": {"seed": SEED + 1},
    "no image attentions in the U-Net": {"unet_order": "text"},
    "no image attentions in the ControlNet": {"control_order": "text"},
    "image before text in the U-Net": {"unet_order": "image, text"},
    "image before text in the ControlNet": {"control_order": "image, text"},
    "embedding of another picture": {"seen": lambda x: x.flip(-1)},
    "no ControlNet": {"control_scale": 0.0},
    "half the ControlNet": {"control_scale": 0.5},
    "ControlNet sees [-1, 1]": {"control_picture": lambda x: x * 2 - 1},
    "no tags": {"prompt": ", {text}," + FIXED},
    "no text": {"prompt": "{tags}, ," + FIXED},
    "no fixed text": {"prompt": "{tags}, {text},"},
    "no colours": {"color": "none"},
    "colours by wavelet": {"color": "wavelet"},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_would_show(case, truth, mistake) -> None:
    assert (equation(case, **MISTAKES[mistake]) - truth).abs().max() > 2 * TOLERANCE


# Files


def test_the_published_files_are_recognised(case) -> None:
    assert {describe(case["lora"] / file) for file in FILES} == {
        "TAD-SeeSR: whole U-Net and ControlNet with image attentions"
    }
    lora = read_lora(case["lora"])
    assert (str(lora.base), lora.network, lora.vae) == ("Stable Diffusion 2.1 with epsilon prediction", (), ())
    assert not any("image_attentions" in name for name in lora.replaced)


def test_a_missing_network_is_named(case, tmp_path) -> None:
    shutil.copytree(case["lora"], tmp_path / "part")
    for remove in (Path.unlink, lambda file: file.parent.rmdir()):
        remove(tmp_path / "part" / FILES[1])
        with pytest.raises(UserError, match=r"controlnet/diffusion_pytorch_model\.safetensors does not exist"):
            read_lora(tmp_path / "part")


DIFFERENT = r"its image attentions are not those of the base \(they differ at mid_block.image_attentions.0\)"
LACKING = {
    "of the U-Net": (0, "conv_out.bias", "lacks 1 weights of the base"),
    "of an image attention": (0, "down_blocks.0.image_attentions.0.norm.weight", "do not fit the base .*norm.weight"),
    "an image attention": (0, "mid_block.image_attentions.0.", DIFFERENT),
    "of the ControlNet": (1, "controlnet_mid_block.bias", "do not fit the base .*controlnet_mid_block.bias"),
    "the ControlNet's attention": (1, "mid_block.image_attentions.0.", DIFFERENT),
}


@pytest.mark.parametrize("what", LACKING)
def test_incomplete_networks_are_refused(case, tmp_path, what) -> None:
    part, name, words = LACKING[what]
    folder = shutil.copytree(case["lora"], tmp_path / "part")
    tensors = {key: tensor for key, tensor in load_file(folder / FILES[part]).items() if not key.startswith(name)}
    save_file(tensors, folder / FILES[part])
    with pytest.raises(UserError, match=words):
        opened(case | {"lora": folder})


def test_the_tagger_is_asked_for(case) -> None:
    with pytest.raises(UserError, match="TAD-SeeSR needs RAM"):
        opened(case, tagger=False)


@pytest.fixture(scope="module")
def single(case, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("single") / "tad.safetensors"
    assert convert(case["lora"], file) == "TAD-SeeSR: whole U-Net and ControlNet with image attentions"
    return file


def test_one_file_holds_every_weight_of_both_folders(case, single) -> None:
    folders, file = read_lora(case["lora"]), read_lora(single)
    for part in ("replaced", "image_attentions", "control"):
        first, second = getattr(folders, part), getattr(file, part)
        assert first and first.keys() == second.keys()
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    with safe_open(single, "pt") as whole:
        found = whole.metadata()
    assert found["base"] == "Stable Diffusion 2.1 with epsilon prediction" and found["licence"] == FAMILY.licence


def test_the_single_file_gives_what_the_equation_says(case, single, truth) -> None:
    result = upscale(opened(case | {"lora": single}).model, case["image"], AS_LARGE)
    assert (result - truth).abs().max() < TOLERANCE


@pytest.mark.parametrize("lacking", ["control/", "replaced/network/down_blocks.0.image_attentions.0."])
def test_a_part_of_the_single_file_is_refused(single, tmp_path, lacking) -> None:
    small_peft.without(single, lacking, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=f"incomplete .it lacks {lacking}"):
        read_lora(tmp_path / "part.safetensors")


# Tags in the prompts of other families


def test_osediff_with_tags_is_osediff_with_that_prompt(case, tmp_path) -> None:
    torch.save(small_peft.osediff(case["base"]), tmp_path / "osediff.pkl")
    tagger = read_tagger(case["ram"])
    [tags] = tagger.tags(tagger.embedding(case["image"]))
    assert tags.count("tag ") > 1
    lora, plain = case | {"lora": tmp_path / "osediff.pkl"}, UpscaleOptions(1)
    expected = upscale(opened(lora, tagger=False, prompt=f"{tags}, {TEXT},").model, case["image"], plain)
    assert torch.equal(upscale(opened(lora).model, case["image"], plain), expected)


def test_a_method_without_tags_refuses_the_tagger(case, tmp_path) -> None:
    torch.save(small_peft.pisa_sr(case["base"]), tmp_path / "pisa_sr.pkl")
    with pytest.raises(UserError, match="PiSA-SR does not use tags: remove --tagger"):
        opened(case | {"lora": tmp_path / "pisa_sr.pkl"}, prompt=None)
