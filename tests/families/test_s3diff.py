"""S3Diff: its published files, its equation in float64 with the LoRA beside the weights, and what possible mistakes
would give."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import small_peft
import small_unet
import torch
import torch.nn.functional as F
from onestep_sr.sr_models.canvas.color import ColorMatch, match
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.diffusers_host.lora import open_lora
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families.bases import unet_kind
from onestep_sr.sr_models.families.catalogue import describe
from onestep_sr.sr_models.families.convert import convert
from onestep_sr.sr_models.families.registry import read_lora
from onestep_sr.sr_models.families.s3diff import FAMILY, FILES, RECIPE
from onestep_sr.sr_models.networks import s3diff as networks
from safetensors import safe_open
from torch import Tensor, nn

TOLERANCE = 1e-4
AS_LARGE = UpscaleOptions(1)
UNTILED = UpscaleOptions(2, color="none")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("s3diff")
    base = small_unet.write(folder / "base", "2.1-base")
    small_peft.calm_output(base)
    content, estimator = small_peft.s3diff(base)
    lora = small_peft.write_s3diff(folder / "files", content, estimator)
    return {"base": base, "lora": lora, "content": content, "estimator": estimator, "image": small_peft.smooth_image()}


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are not padded to multiples of 64 px, which would take long."""
    monkeypatch.setitem(FAMILY.recipes, RECIPE.name, replace(RECIPE, multiple=1))


# The equation: the authors' form, in which the LoRA runs beside each layer


def scores(estimator: dict[str, Tensor], image: Tensor) -> Tensor:
    """(2,) in float64, without modules."""
    found = []
    for score in range(2):
        w = {name: tensor.double() for name, tensor in estimator.items()}

        def conv(x: Tensor, name: str, stride: int = 1, w: dict[str, Tensor] = w) -> Tensor:
            return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride, padding=1)

        x = conv(image.double(), f"conv_first.{score}")
        for number in range(9):
            name = f"body.{score}.{number}"
            x = conv(x, name, 2) if number == 6 else x + conv(conv(x, f"{name}.conv1").relu(), f"{name}.conv2")
        head = [(w[f"fc_degree.{score}.{number}.weight"], w[f"fc_degree.{score}.{number}.bias"]) for number in (0, 2)]
        found.append(F.linear(F.linear(x.mean((-2, -1)), *head[0]).relu(), *head[1]).sigmoid()[0, 0])
    return torch.stack(found)


def matrices(content: dict[str, Any], found: Tensor, part: str) -> Tensor:
    def layer(table: str, x: Tensor, prefix: str = "0.") -> Tensor:
        tensors = content[f"state_dict_{part}_{table}"]
        return F.linear(x, tensors[f"{prefix}weight"].double(), tensors[f"{prefix}bias"].double())

    phases = [score * content["w"].double() * 2 * torch.pi for score in found]
    waves = torch.cat([wave for phase in phases for wave in (phase.sin(), phase.cos())])
    blocks = layer("block_mlp", content["state_embeddings"][f"state_dict_{part}_block"]["weight"].double()).relu()
    both = torch.cat([layer("de_mlp", waves).relu().expand(len(blocks), -1), blocks], dim=1)
    rank = content[f"rank_{part}"]
    return layer("fuse_mlp", both, "").view(-1, rank, rank)


BLOCKS: dict[str, Callable[[list[str]], int]] = {
    "unet": lambda n: (
        {"down_blocks": 0, "mid_block": 4, "up_blocks": 5}.get(n[0], 9)
        + (int(n[1]) if n[0] in ("down_blocks", "up_blocks") else 0)
    ),
    "vae": lambda n: int(n[2]) if n[1] == "down_blocks" else 4 if n[1] == "mid_block" else 5,
}


def add_beside(network: nn.Module, tensors: dict[str, Tensor], part: str, mixing: Tensor, scale: float) -> None:
    """Hooks that add scale B M^T A x to each layer's result."""
    for name in (key for key in tensors if ".lora_A." in key):
        module, halves = name.split(".lora_A.")[0], (tensors[name], tensors[name.replace("_A.", "_B.")])
        beside = partial(_beside, *(half.double() for half in halves), mixing[BLOCKS[part](module.split("."))], scale)
        network.get_submodule(module).register_forward_hook(beside)


def _beside(
    down: Tensor, up: Tensor, m: Tensor, scale: float, layer: Any, inputs: tuple[Tensor, ...], result: Tensor
) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        low = F.conv2d(inputs[0], down, None, layer.stride, layer.padding)
        return result + scale * F.conv2d(torch.einsum("bkhw,kr->brhw", low, m), up)
    return result + scale * F.linear(F.linear(inputs[0], down) @ m, up)


@torch.no_grad()
def equation(
    case: dict,
    image: Tensor,
    *,
    seen: Tensor | None = None,
    timestep: int = 999,
    guidance: float = 1.07,
    prompts: tuple[str, str] = (RECIPE.prompt, RECIPE.negative_prompt),
    scale: float = 1.0,
    left_out: str = "",
    transposed: bool = False,
    color: ColorMatch = "wavelet",
) -> Tensor:
    """In float64; `seen` is the picture that the scores are of. What may be passed by name are places for mistakes."""
    unet, vae = small_peft.opened(case["base"])
    content = case["content"]
    found = scores(case["estimator"], image if seen is None else seen)
    for part, network in (("unet", unet), ("vae", vae)):
        tensors = {n: t for n, t in content[f"state_dict_{part}"].items() if ".lora_" in n and left_out != part}
        mixing = matrices(content, found, part)
        if left_out == "modulation":
            mixing = torch.eye(mixing.shape[-1], dtype=torch.float64).expand_as(mixing)
        add_beside(network, tensors, part, mixing.mT if transposed else mixing, scale * 8 / content[f"rank_{part}"])
    for end in ("weight", "bias") if left_out != "conv_in" else ():
        unet.conv_in.get_parameter(end).data = content["state_dict_unet"][f"conv_in.{end}"].double()
    alpha, sigma = small_peft.roots(timestep)
    z = 0.18215 * vae.encode(image.double() * 2 - 1).latent_dist.mode()
    e, away = (
        unet(z, timestep, encoder_hidden_states=small_peft.encoded(case["base"], prompt).double()).sample
        for prompt in prompts
    )
    z_0 = (z - sigma * (away + guidance * (e - away))) / alpha
    result = (vae.decode(z_0 / 0.18215).sample / 2 + 0.5).clamp(0, 1).float()
    return match(result, image, color).clamp(0, 1)


@pytest.fixture(scope="module")
def truth(case) -> Tensor:
    result = equation(case, case["image"])
    assert result.std() > 0.02 and (result == result.clamp(0.01, 0.99)).float().mean() > 0.5, "something to compare"
    return result


@pytest.fixture
def model(case):
    return open_lora(case["base"], case["lora"], dtype=torch.float32).model


def test_each_picture_has_weights_of_its_own(case, truth, model) -> None:
    """One after the other, in a batch, and the first one again."""
    other = 1 - case["image"].flip(-1)
    both = upscale(model, torch.cat([case["image"], other]), AS_LARGE)
    assert (both[:1] - truth).abs().max() < TOLERANCE
    assert (both[1:] - equation(case, other)).abs().max() < TOLERANCE
    assert (both[1:] - equation(case, other, seen=case["image"])).abs().max() > 5 * TOLERANCE
    assert torch.equal(upscale(model, case["image"], AS_LARGE), both[:1])


def test_the_picture_is_seen_before_it_is_enlarged_bilinearly(case, model) -> None:
    small = case["image"][..., ::2, ::2]
    enlarged = F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    result = upscale(model, small, UNTILED)
    assert (result - equation(case, enlarged, seen=small, color="none")).abs().max() < TOLERANCE
    assert (result - equation(case, enlarged, color="none")).abs().max() > 5 * TOLERANCE


def test_the_command_line_gives_what_the_equation_says(case, truth, tmp_path, capsys) -> None:
    files = ("--base", case["base"], "--lora", case["lora"].parent)
    assert (small_peft.on_the_command_line(case["image"], tmp_path, *files) - truth).abs().max() < TOLERANCE
    assert "Licence of S3Diff: Apache-2.0" in capsys.readouterr().out


def test_the_single_file_gives_the_same_result(case, model, tmp_path) -> None:
    path = tmp_path / "one.safetensors"
    words = "S3Diff: U-Net and VAE encoder LoRA, rank 4, 8, that depends on the picture"
    assert convert(case["lora"], path) == words == describe(case["lora"])
    with safe_open(path, "pt") as file:
        found = file.metadata()
    assert {key: found[key] for key in ("onestep_sr_family", "rank", "alpha", "base")} == {
        "onestep_sr_family": "s3diff",
        "rank": "4, 8",
        "alpha": "8",
        "base": "SD-Turbo (Stable Diffusion 2.1) with epsilon prediction",
    }
    single = open_lora(case["base"], path, dtype=torch.float32).model
    assert torch.equal(upscale(single, case["image"], AS_LARGE), upscale(model, case["image"], AS_LARGE))


def test_strengths_count_for_the_next_picture(case, truth) -> None:
    opened = open_lora(case["base"], case["lora"], dtype=torch.float32)
    for strength in (0.0, 1.0):
        for adapter in opened.adapters:
            adapter.set_strength(strength)
        expected = truth if strength else equation(case, case["image"], scale=0.0)
        assert (upscale(opened.model, case["image"], AS_LARGE) - expected).abs().max() < TOLERANCE


MISTAKES: dict[str, dict[str, Any]] = {
    "timestep 998": {"timestep": 998},
    "no guidance": {"guidance": 1.0},
    "prompts exchanged": {"prompts": (RECIPE.negative_prompt, RECIPE.prompt)},
    "empty negative prompt": {"prompts": (RECIPE.prompt, "")},
    "scale 1 in place of 8 / r": {"scale": 0.5},
    "U-Net LoRA ignored": {"left_out": "unet"},
    "VAE LoRA ignored": {"left_out": "vae"},
    "conv_in not replaced": {"left_out": "conv_in"},
    "the picture ignored": {"left_out": "modulation"},
    "M in place of its transpose": {"transposed": True},
    "no colours": {"color": "none"},
    "colours by AdaIN": {"color": "adain"},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_would_show(case, truth, mistake) -> None:
    assert (equation(case, case["image"], **MISTAKES[mistake]) - truth).abs().max() > 5 * TOLERANCE


# Files


def test_the_scores_are_the_same_in_bands(case, monkeypatch) -> None:
    estimator = networks.DegradationEstimator()
    estimator.load_state_dict(case["estimator"])
    picture = torch.rand(1, 3, 93, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = estimator(picture)
        monkeypatch.setattr(networks, "BAND", 40 * 20)
        banded = estimator(picture)
    assert (whole[0] - scores(case["estimator"], picture)).abs().max() < 1e-5
    assert (whole - banded).abs().max() < 1e-6


def test_the_published_shapes_have_the_published_counts() -> None:
    with torch.device("meta"):
        modulator = networks.S3DiffModulator({"vae": 16, "unet": 32})
    tables = {name: sum(p.numel() for p in part.parameters()) for name, part in modulator.named_children()}
    assert tables["unet_fuse_mlp"] == 321 * 1024 and tables["vae_fuse_mlp"] == 321 * 256
    assert (tables["unet_block_embeddings"], tables["vae_block_embeddings"]) == (640, 384)


@pytest.mark.parametrize("file", FILES)
def test_both_files_are_recognised_and_complete(case, file) -> None:
    lora = read_lora(case["lora"].with_name(file))
    assert sorted(lora.replaced) == ["conv_in.bias", "conv_in.weight"]
    for [adapter], part in ((lora.network, "unet"), (lora.vae, "vae")):
        keys = [key for key in case["content"][f"state_dict_{part}"] if ".lora_A." in key]
        assert sorted(adapter.update) == sorted(key.split(".lora_A.")[0] for key in keys)
        assert {layer.scale for layer in adapter.update.values()} == {8 / small_peft.S3DIFF_RANKS[part]}
    assert "conv_in" not in lora.network[0].update and "quant_conv" not in lora.vae[0].update


def _drop(table: str, part: str) -> Callable[[dict], object]:
    return lambda content: [content[table].pop(key) for key in list(content[table]) if part in key]


BROKEN: dict[str, tuple[Callable[[dict], object], str]] = {
    "half": (_drop("state_dict_vae", "encoder.conv_out.lora_B"), r"lacks encoder\.conv_out\.lora_B"),
    "conv_in": (_drop("state_dict_unet", "conv_in.bias"), r"lacks conv_in\.bias"),
    "part": (_drop("state_dict_unet", "proj_out"), r"incomplete: 4 of the \d+ modules of the base's U-Net"),
    "VAE part": (_drop("state_dict_vae", "mid_block"), r"incomplete: \d+ of the \d+ modules of the base's VAE"),
    "modulation": (_drop("state_dict_vae_fuse_mlp", "weight"), r"lacks 1 weights \(vae_fuse_mlp\.weight"),
    "embedding": (_drop("state_embeddings", "unet"), r"lacks 1 weights \(unet_block_embeddings\.weight"),
    "other weights": (lambda c: c["state_dict_unet"].update({"x.weight": torch.zeros(1)}), "not a LoRA's"),
    "other tables": (lambda c: c.update({"ema": {"x": torch.zeros(1)}}), r"does not have \(ema/x\)"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_every_key_has_its_place_or_the_file_is_refused(case, tmp_path, kind) -> None:
    change, words = BROKEN[kind]
    content = copy.deepcopy(case["content"])
    change(content)
    path = small_peft.write_s3diff(tmp_path / "files", content, case["estimator"])
    with pytest.raises(UserError, match=words):
        open_lora(case["base"], path, dtype=torch.float32)


def test_a_rank_that_its_matrices_do_not_have_is_named(case) -> None:
    lora = read_lora(case["lora"])
    [network] = lora.network
    halved = {name: replace(layer, down=layer.down[:4], up=layer.up[:, :4]) for name, layer in network.update.items()}
    lora = replace(lora, network=(replace(network, update=halved),))
    with pytest.raises(UserError, match="has rank 4, but the matrices that change it have 8"):
        lora.for_picture(case["image"])


def test_a_single_file_without_its_vae_part_is_refused(case, tmp_path) -> None:
    FAMILY.save(tmp_path / "part.safetensors", replace(read_lora(case["lora"]), vae=()))
    with pytest.raises(UserError, match="is incomplete"):
        read_lora(tmp_path / "part.safetensors")


def test_a_missing_second_file_is_named(case, tmp_path) -> None:
    torch.save(case["content"], tmp_path / "s3diff.pkl")
    with pytest.raises(UserError, match=r"s3diff\.pkl is one of S3Diff's two files, but .*de_net\.pth does not exist"):
        read_lora(tmp_path / "s3diff.pkl")


def test_another_base_is_refused_with_both_names(case) -> None:
    lora = read_lora(case["lora"])
    lora.require_base(unet_kind(1024, "epsilon"), "the base")
    for kind, title in ((unet_kind(768, "epsilon"), "1.5 with epsilon"), (unet_kind(1024, "v"), "2.1 with v")):
        words = f"is an S3Diff LoRA for SD-Turbo .* with epsilon prediction, but the base is .*{title}"
        with pytest.raises(UserError, match=words):
            lora.require_base(kind, "the base")
