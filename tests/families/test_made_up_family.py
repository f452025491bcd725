"""A family that is registered from outside runs on the command line and in ComfyUI, and gives what its equation says.

`tests/made_up_family.py` is all that its author writes. The equation is computed here in float64, from diffusers'
networks and the definition of the process alone.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import small_unet
import torch
from comfyui_host import HOW_TO_GET_ONE, installed_hosts, interpreter
from diffusers import AutoencoderKL, UNet2DConditionModel
from made_up_family import GLOW
from onestep_sr.sr_models.canvas.noise import canvas_noise
from onestep_sr.sr_models.checkpoints.prompt_embeddings import PromptEmbeddings
from onestep_sr.sr_models.commands import cli
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.diffusers_host.lora import open_lora
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families.catalogue import describe, recipes
from onestep_sr.sr_models.families.registry import FAMILIES
from onestep_sr.sr_models.files.picture import Picture
from onestep_sr.sr_models.files.read import read_picture
from onestep_sr.sr_models.files.write import write_picture
from places import HOST_SCRIPTS, ROOT, TESTS
from safetensors.torch import save_file
from small_sd3 import FULL_WIDTHS
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

FAMILY_FILE = TESTS / "made_up_family.py"
PROMPT = "a house by the sea"
TOLERANCE = 1e-4
AS_LARGE = UpscaleOptions(1)
RANK, ALPHA = 2, 3.0
UNET_MODULES = ("to_q", "to_out.0", "conv1", "conv_out", "proj_in")
VAE_MODULES = ("conv1", "conv_out", "to_v", "quant_conv")
KINDS = {"2.1-base": "epsilon", "2.1": "v"}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    FAMILIES.register(GLOW)
    yield
    FAMILIES.remove(GLOW.name)


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randint(0, 2**16, (1, 3, 64, 96), generator=torch.Generator().manual_seed(0)) / (2**16 - 1)


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return made_case(tmp_path_factory.mktemp(request.param), request.param, small_unet.NARROW)


def made_case(folder: Path, kind: str, widths: tuple[int, ...]) -> dict:
    """A small Stable Diffusion 2.1 and a LoRA of the made-up method's for it. ComfyUI takes VAEs of full width only."""
    base = small_unet.write(folder / "base", kind, widths)
    tensors = made_lora(base)
    save_file(tensors, folder / "glow.safetensors", metadata={"prediction": KINDS[kind]})
    return {"kind": kind, "base": base, "lora": folder / "glow.safetensors", "tensors": tensors}


def made_lora(base: Path) -> dict[str, Tensor]:
    generator, tensors = torch.Generator().manual_seed(4), {}
    unet, vae = UNet2DConditionModel.from_pretrained(base / "unet"), AutoencoderKL.from_pretrained(base / "vae")
    for part, network, modules in (("unet", unet, UNET_MODULES), ("vae", vae, VAE_MODULES)):
        for name, weight in network.named_parameters():
            module = name.removesuffix(".weight")
            if name.startswith("decoder.") or module == name or not module.endswith(modules):
                continue
            shape, rest = weight.shape, (1,) * (weight.ndim - 2)
            down = torch.randn(RANK, *shape[1:], generator=generator) / weight[0].numel() ** 0.5
            tensors[f"glow/{part}/{module}.lora_A.weight"] = down
            tensors[f"glow/{part}/{module}.lora_B.weight"] = 0.1 * torch.randn(
                shape[0], RANK, *rest, generator=generator
            )
            tensors[f"glow/{part}/{module}.alpha"] = torch.tensor(ALPHA)
    for end in ("weight", "bias"):
        weight = unet.conv_in.get_parameter(end)
        tensors[f"glow/instead/conv_in.{end}"] = weight + 0.2 * torch.randn(weight.shape, generator=generator) / 6
    return tensors


# The equation


@torch.no_grad()
def equation(case: dict, image: Tensor, prompt: str = PROMPT, strength: float = 1.0) -> Tensor:
    """D(z_0 / s), z_0 = (z_t - b e) / a, e = U(z_t, 250, prompt), z_t = a z + b n, z = s E(x): all in float64."""
    base, tensors = case["base"], case["tensors"]
    unet = UNet2DConditionModel.from_pretrained(base / "unet").double()
    vae = AutoencoderKL.from_pretrained(base / "vae").double()
    for end in ("weight", "bias"):
        unet.conv_in.get_parameter(end).data = tensors[f"glow/instead/conv_in.{end}"].double()
    for part, network in (("unet", unet), ("vae", vae)):
        for name in (key for key in tensors if key.startswith(f"glow/{part}/") and key.endswith(".lora_A.weight")):
            down, up = tensors[name].double(), tensors[name.replace("lora_A", "lora_B")].double()
            change = torch.einsum("or,ri->oi", up.flatten(1), down.flatten(1)) * ALPHA / RANK
            module = name.removeprefix(f"glow/{part}/").removesuffix(".lora_A.weight")
            weight = network.get_parameter(f"{module}.weight")
            weight += strength * change.view(weight.shape)
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    a, b = alphas[250].sqrt(), (1 - alphas[250]).sqrt()
    assert (a - 0.820849).abs() < 1e-5 and (b - 0.571146).abs() < 1e-5
    z = 0.18215 * vae.encode(image.double() * 2 - 1).latent_dist.mode()
    z_t = a * z + b * canvas_noise(z, 0).double()
    output = unet(z_t, 250, encoder_hidden_states=encoded(base, prompt).double()).sample
    z_0 = a * z_t - b * output if KINDS[case["kind"]] == "v" else (z_t - b * output) / a
    return (vae.decode(z_0 / 0.18215).sample / 2 + 0.5).clamp(0, 1).float()


@torch.no_grad()
def encoded(base: Path, prompt: str) -> Tensor:
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    tokens = tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    return CLIPTextModel.from_pretrained(base / "text_encoder")(tokens).last_hidden_state


@pytest.fixture(scope="module")
def truth(case: dict, image: Tensor) -> Tensor:
    result = equation(case, image)
    assert result.std() > 0.02 and (result == result.clamp(0.01, 0.99)).float().mean() > 0.5, "something to compare"
    assert (equation(case, image, "another prompt") - result).abs().max() > 10 * TOLERANCE
    return result


# The command line


def from_the_command_line(case: dict, image: Tensor, folder: Path) -> Tensor:
    """In this process, where the family is registered, and with 16 bits a channel, so that rounding does not matter."""
    write_picture(folder / "in.png", Picture(image[0], bits=16))
    command = ["onestep-sr", "upscale", folder / "in.png", "-o", folder / "out.png", "--scale", 1, "--prompt", PROMPT]
    command += ["--base", case["base"], "--lora", case["lora"], "--dtype", "fp32", "--device", "cpu"]
    before, sys.argv = sys.argv, [str(part) for part in command]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, end.code
    finally:
        sys.argv = before
    return read_picture(folder / "out.png").pixels[None]


def test_the_command_line_gives_what_the_equation_says(case, image, truth, tmp_path) -> None:
    assert (from_the_command_line(case, image, tmp_path) - truth).abs().max() < TOLERANCE


def test_the_registered_family_is_listed_and_named(case: dict) -> None:
    assert describe(case["lora"]) == "Glow-SR LoRA"
    assert any(line.startswith("glow ") and "with --base and --lora" in line for line in recipes())


def test_another_prediction_is_refused(case: dict, tmp_path: Path) -> None:
    """An epsilon LoRA on a base of v would give a picture, and a wrong one."""
    other = {"epsilon": "v", "v": "epsilon"}[KINDS[case["kind"]]]
    save_file(case["tensors"], tmp_path / "other.safetensors", metadata={"prediction": other})
    words = f"other.safetensors is a Glow-SR LoRA for Stable Diffusion 2.1 with {other} prediction, but the base is"
    with pytest.raises(UserError, match=words):
        open_lora(case["base"], tmp_path / "other.safetensors", dtype=torch.float32)


# Strengths and prompts


def test_strengths_change_without_reading_files_again(case: dict, image: Tensor, truth: Tensor) -> None:
    opened = open_lora(case["base"], case["lora"], prompt=PROMPT, dtype=torch.float32)
    case["lora"].rename(case["lora"].with_suffix(".away"))
    try:
        for strength in (0.5, 0.0, 1.0):
            for adapter in opened.adapters:
                adapter.set_strength(strength)
            expected = truth if strength == 1 else equation(case, image, strength=strength)
            assert (upscale(opened.model, image, AS_LARGE) - expected).abs().max() < TOLERANCE
    finally:
        case["lora"].with_suffix(".away").rename(case["lora"])
    fresh = open_lora(case["base"], case["lora"], prompt=PROMPT, dtype=torch.float32)
    assert [(adapter.name, adapter.strength) for adapter in opened.adapters] == [("unet", 1.0), ("vae", 1.0)]
    for module, other in zip(opened.modules, fresh.modules, strict=True):
        for weight, wanted in zip(module.parameters(), other.parameters(), strict=True):
            assert (weight - wanted).abs().max() <= 4 * torch.finfo(torch.float32).eps * wanted.abs().max()


class PerPicture:
    """A prompt for each picture of a batch."""

    def __init__(self, *prompts: PromptEmbeddings):
        self.prompts = prompts

    def __call__(self, picture: Tensor, index: int) -> PromptEmbeddings:
        assert picture.shape[:2] == (1, 3)
        return self.prompts[index]


def test_each_picture_of_a_batch_may_have_its_prompt(case: dict, image: Tensor) -> None:
    """Another conditioner is all that it takes; a family brings it as data."""
    texts, pictures = ("a cat", "a dog"), torch.cat([image, image.flip(-1)])
    FAMILIES.remove(GLOW.name)
    FAMILIES.register(replace(GLOW, conditioner=lambda encode, prompt: PerPicture(*map(encode, texts))))
    both = upscale(open_lora(case["base"], case["lora"], dtype=torch.float32).model, pictures, AS_LARGE)
    FAMILIES.remove(GLOW.name)
    FAMILIES.register(GLOW)
    for index, text in enumerate(texts):
        model = open_lora(case["base"], case["lora"], prompt=text, dtype=torch.float32).model
        assert torch.equal(both[index], upscale(model, pictures[index : index + 1], AS_LARGE)[0])
    assert (both[0] - both[1].flip(-1)).abs().max() > 10 * TOLERANCE


# ComfyUI


@pytest.mark.host
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("folder", installed_hosts() or [None], ids=lambda folder: folder.name if folder else "none")
def test_comfyui_and_the_command_line_give_what_the_equation_says(folder, kind, image, tmp_path) -> None:
    if folder is None:
        pytest.skip(HOW_TO_GET_ONE)
    case = made_case(tmp_path, kind, FULL_WIDTHS)
    inputs = {"kind": kind, "folder": str(case["base"]), "lora": str(case["lora"]), "image": image}
    inputs |= {"config": small_unet.comfyui_config(kind), "prompt": encoded(case["base"], PROMPT)}
    torch.save({"glow": inputs | {"pooled": torch.zeros(1, 0)}}, tmp_path / "cases.pt")
    (tmp_path / "onestep_sr").symlink_to(ROOT, target_is_directory=True)
    command = [interpreter(folder), HOST_SCRIPTS / "unet_in_comfyui.py", tmp_path, tmp_path / "cases.pt"]
    command += [tmp_path / "results.pt", FAMILY_FILE]
    done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    results, truth = torch.load(tmp_path / "results.pt")["glow"], equation(case, image)
    command_line = from_the_command_line(case, image, tmp_path)
    for one, other in ((results["whole"], truth), (command_line, truth), (results["whole"], command_line)):
        assert (one - other).abs().max() < TOLERANCE
    assert results["warning"] == () and results["carries"] == (False, True, True) and results["as it was"]
    assert "has width 4096, but" in results["another prompt"] and "Stable Diffusion 2.1" in results["another prompt"]
