"""InvSR: its published file, its equation in float64 with a predictor from diffusers' blocks, and what possible
mistakes would give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_invsr
import small_peft
import small_unet
import torch
import torch.nn.functional as F
from onestep_sr.sr_models.canvas.color import ColorMatch, match
from onestep_sr.sr_models.canvas.noise import canvas_noise
from onestep_sr.sr_models.canvas.resize import resize
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.process import variance_preserving
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.diffusers_host.lora import open_lora
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families.bases import unet_kind
from onestep_sr.sr_models.families.catalogue import describe
from onestep_sr.sr_models.families.convert import convert
from onestep_sr.sr_models.families.family import on_base
from onestep_sr.sr_models.families.invsr import FAMILY, RECIPE
from onestep_sr.sr_models.families.published import PUBLISHED
from onestep_sr.sr_models.families.registry import read_lora
from onestep_sr.sr_models.networks.invsr import NoisePredictor, PredictorConfig
from safetensors import safe_open
from torch import Tensor

TOLERANCE = 1e-4
SEED = 7
FOUR = UpscaleOptions(4, seed=SEED)
STEPS = {"invsr-s2": [200, 100], "invsr-s5": [250, 200, 150, 100, 50]}  # as the published script counts them


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("invsr")
    base = small_unet.write(folder / "base", "2.1-base", (32, 32, 32, 32))
    prompts = {prompt: small_peft.encoded(base, prompt).double() for prompt in (RECIPE.prompt, "")}
    networks, image = (*small_peft.opened(base), small_invsr.predictor().double()), small_peft.smooth_image()
    found = {"base": base, "lora": small_invsr.write(folder / "files"), "networks": networks, "prompts": prompts}
    return found | {"image": image[..., :16, :], "z": latent_of(networks[1], image[..., :16, :])}


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are not enlarged to 128 px, which would take long."""
    for name, recipe in FAMILY.recipes.items():
        monkeypatch.setitem(FAMILY.recipes, name, replace(recipe, shortest=0))


# The equation: Euler steps in sigma = sqrt(1 - a) / sqrt(a), of which the last one ends at 0


@torch.no_grad()
def latent_of(vae: Any, image: Tensor) -> Tensor:
    enlarged = F.interpolate(image.double(), scale_factor=4, mode="bicubic").clamp(0, 1)
    return 0.18215 * vae.encode(enlarged * 2 - 1).latent_dist.mode()


@torch.no_grad()
def equation(
    case: dict,
    *,
    counted: tuple[int, ...] | list[int] = (200,),
    counted_from: int = 1,
    prompt: str = RECIPE.prompt,
    seed: int = SEED,
    amounts: tuple[float, float, float] = (1.0, 1.0, 1.0),
    power: float = 0.5,
    centred: bool = True,
    seen_at: int | None = None,
    color: ColorMatch = "none",
    columns: tuple[int, ...] = (),
) -> Tensor:
    """In float64. `columns`: where tiles of 8 x 16 latent pixels begin, for a latent of 8 x 24. The rest that may be
    passed by name are places for mistakes: `amounts` are those of noise, mean and deviation."""
    (unet, vae, predictor), condition = case["networks"], case["prompts"][prompt]
    z, lr = case["z"], case["image"].double()
    drawn = canvas_noise(z.float(), seed).double()
    timesteps = [each - counted_from for each in counted]
    sigmas = [float(sigma / alpha) for alpha, sigma in map(small_peft.roots, timesteps)] + [0.0]

    def sampled(z: Tensor, drawn: Tensor, lr: Tensor) -> Tensor:
        given = lr * 2 - 1 if centred else lr
        moments = predictor(given, torch.tensor([timesteps[0] if seen_at is None else seen_at]))
        mean, log_variance = moments.chunk(2, dim=1)
        noise = amounts[1] * mean + amounts[2] * (power * log_variance).exp() * drawn
        z = z + amounts[0] * sigmas[0] * noise
        for number, timestep in enumerate(timesteps):
            e = unet(z / (1 + sigmas[number] ** 2) ** 0.5, timestep, encoder_hidden_states=condition).sample
            z = z + (sigmas[number + 1] - sigmas[number]) * e
        return z

    if columns:
        share = (torch.arange(8, dtype=torch.float64) + 0.5) / 8  # of the eight columns that both tiles have
        weight = torch.cat([torch.ones(8, dtype=torch.float64), 1 - 3 * share**2 + 2 * share**3])
        z_0 = torch.zeros_like(z)
        for left, each in zip(columns, (weight, weight.flip(0)), strict=True):
            part = slice(left, left + 16)
            z_0[..., part] += each * sampled(z[..., part], drawn[..., part], lr[..., 2 * left : 2 * left + 32])
    else:
        z_0 = sampled(z, drawn, lr)
    result = (vae.decode(z_0 / 0.18215).sample / 2 + 0.5).clamp(0, 1).float()
    return match(result, resize(case["image"], (64, 192)), color).clamp(0, 1)


@pytest.fixture(scope="module")
def truth(case) -> Tensor:
    result = equation(case)
    assert result.std() > 0.02 and (result == result.clamp(0.01, 0.99)).float().mean() > 0.5, "something to compare"
    return result


def opened(case: dict, **options: Any):
    return open_lora(case["base"], case["lora"], **({"dtype": torch.float32} | options))


def test_one_step_is_what_the_equation_says(case, truth) -> None:
    model = opened(case).model
    assert (upscale(model, case["image"], FOUR) - truth).abs().max() < TOLERANCE
    both = upscale(model, torch.cat([1 - case["image"], case["image"]]), FOUR)
    assert (both[1:] - truth).abs().max() < TOLERANCE, "each picture has its own noise"


@pytest.mark.parametrize("recipe", STEPS)
def test_several_steps_are_what_the_equation_says(case, truth, recipe) -> None:
    result = upscale(opened(case, recipe=recipe).model, case["image"], FOUR)
    assert (result - equation(case, counted=STEPS[recipe])).abs().max() < TOLERANCE
    assert (result - truth).abs().max() > 5 * TOLERANCE


def test_in_tiles_the_predictor_sees_each_tiles_part_of_the_picture(case, truth) -> None:
    result = upscale(opened(case).model, case["image"], replace(FOUR, tile=128, overlap=64))
    assert (result - equation(case, columns=(0, 8))).abs().max() < TOLERANCE
    assert (result - truth).abs().max() > 5 * TOLERANCE


def test_the_command_line_gives_what_the_equation_says(case, truth, tmp_path, capsys) -> None:
    files = ("--base", case["base"], "--lora", case["lora"], "--seed", SEED)
    result = small_peft.on_the_command_line(case["image"], tmp_path, *files, scale=4)
    assert (result - truth).abs().max() < TOLERANCE
    assert "InvSR may not be used commercially. Its licence: S-Lab License 1.0" in capsys.readouterr().out


def test_the_single_file_gives_the_same_result(case, truth, tmp_path) -> None:
    path = tmp_path / "one.safetensors"
    assert convert(case["lora"], path) == describe(case["lora"]) == "InvSR: noise predictor, 1.6 M weights"
    with safe_open(path, "pt") as file:
        assert file.metadata() == {
            "onestep_sr_family": "invsr",
            "base": "SD-Turbo (Stable Diffusion 2.1) with epsilon prediction",
            "licence": FAMILY.licence,
        }
    assert (upscale(opened(case | {"lora": path}).model, case["image"], FOUR) - truth).abs().max() < TOLERANCE


def test_the_predictor_is_among_the_modules_and_computes_in_their_precision(case, truth) -> None:
    model = opened(case, offload=True, dtype=torch.bfloat16)
    assert {weight.dtype for weight in model.modules[-1].parameters()} == {torch.bfloat16}
    assert isinstance(model.modules[-1], NoisePredictor) and model.takes_turns
    assert (upscale(model.model, case["image"], FOUR) - truth).abs().mean() < 0.02


MISTAKES: dict[str, dict[str, Any]] = {
    "counted from 0": {"counted_from": 0},
    "start at 250": {"counted": (250,)},
    "predictor at the published count": {"seen_at": 200},
    "predictor at t = 0": {"seen_at": 0},
    "no noise": {"amounts": (0.0, 1.0, 1.0)},
    "half the noise": {"amounts": (0.5, 1.0, 1.0)},
    "the mean alone": {"amounts": (1.0, 1.0, 0.0)},
    "without the mean": {"amounts": (1.0, 0.0, 1.0)},
    "the variance in place of the deviation": {"power": 1.0},
    "another seed's noise": {"seed": SEED + 1},
    "the picture in [0, 1]": {"centred": False},
    "empty prompt": {"prompt": ""},
    "two steps": {"counted": (200, 100)},
    "colours by wavelet": {"color": "wavelet"},
    "colours by AdaIN": {"color": "adain"},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_would_show(case, truth, mistake) -> None:
    assert (equation(case, **MISTAKES[mistake]) - truth).abs().max() > 5 * TOLERANCE


def test_a_step_without_its_predictor_says_so() -> None:
    recipe = on_base(RECIPE, variance_preserving("epsilon", torch.linspace(0.99, 0.01, 1000)))
    with pytest.raises(ValueError, match="no predictor"):
        recipe.step(lambda *given: given[0], *3 * [torch.zeros(1, 4, 8, 8)])


# Files


def test_the_published_shapes_have_the_published_count_and_names() -> None:
    with torch.device("meta"):
        ours, other = NoisePredictor(PredictorConfig()), small_invsr.Predictor(small_invsr.PUBLISHED)
    assert sum(weight.numel() for weight in ours.parameters()) == 33_837_576
    shapes = [{name: tuple(t.shape) for name, t in network.state_dict().items()} for network in (ours, other)]
    assert shapes[0] == shapes[1]


def test_every_key_of_the_file_has_its_place(case) -> None:
    lora, content = read_lora(case["lora"]), torch.load(case["lora"])
    assert lora.predictor is not None
    found = lora.predictor.state_dict()
    assert found.keys() == content.keys() and all(torch.equal(found[name], content[name]) for name in content)
    assert (lora.network, lora.vae, lora.replaced) == ((), (), {})
    assert case["lora"].name in PUBLISHED["invsr"].names


WRAPPED = {
    "state_dict": lambda content: {"state_dict": content},
    "module.": lambda content: {f"module.{name}": tensor for name, tensor in content.items()},
    "_orig_mod.": lambda content: {f"_orig_mod.{name}": tensor for name, tensor in content.items()},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_what_a_trainer_puts_around_the_names_is_taken_off(case, tmp_path, kind) -> None:
    torch.save(WRAPPED[kind](torch.load(case["lora"])), tmp_path / "any.pth")
    assert describe(tmp_path / "any.pth") == describe(case["lora"])
    assert read_lora(tmp_path / "any.pth").family is FAMILY


BROKEN = {
    "lacking": ("encoder.mid_block.resnets.1.conv2.bias", None, r"lacks 1 weights \(encoder\.mid_block\.resnets\.1"),
    "unknown": ("encoder.quant.weight", torch.zeros(1), r"has unknown 1 weights \(encoder\.quant\.weight\)"),
    "width": ("encoder.down_blocks.0.resnets.0.conv1.weight", torch.zeros(60, 3), "has another shape for"),
    "scalar": ("encoder.down_blocks.1.resnets.0.conv1.weight", torch.tensor(1.0), "has another shape for"),
    "not finite": ("encoder.conv_in.bias", torch.full((64,), torch.nan), "not finite in encoder"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused(case, tmp_path, kind) -> None:
    name, tensor, words = BROKEN[kind]
    content = {key: value for key, value in torch.load(case["lora"]).items() if key != name}
    torch.save(content | ({} if tensor is None else {name: tensor}), tmp_path / "broken.pth")
    with pytest.raises(UserError, match=words):
        read_lora(tmp_path / "broken.pth")


def test_a_single_file_without_its_predictor_is_refused(case, tmp_path) -> None:
    path = tmp_path / "whole.safetensors"
    convert(case["lora"], path)
    small_peft.without(path, "predictor/encoder.conv_out.", Path(tmp_path / "part.safetensors"))
    with pytest.raises(UserError, match=r"lacks 2 weights \(encoder\.conv_out\.bias"):
        read_lora(tmp_path / "part.safetensors")


def test_a_strength_is_refused_as_it_has_none(case) -> None:
    with pytest.raises(UserError, match="InvSR has no strength 'unet': remove it, as this file has no strengths"):
        read_lora(case["lora"]).at({"unet": 0.5})


def test_another_base_is_refused_with_both_names(case) -> None:
    lora = read_lora(case["lora"])
    for kind, title in ((unet_kind(768, "epsilon"), "1.5 with epsilon"), (unet_kind(1024, "v"), "2.1 with v")):
        words = f"is an InvSR LoRA for SD-Turbo .* with epsilon prediction, but the base is .*{title}"
        with pytest.raises(UserError, match=words):
            lora.require_base(kind, "the base")
