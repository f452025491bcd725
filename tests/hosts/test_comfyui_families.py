"""Families on Stable Diffusion 2.1 inside real ComfyUI, on a small U-Net, to floats: PiSA-SR, both
layouts of OSEDiff, HYPIR, OMGSR-S, GDPO-SR, S3Diff and InvSR.

What ComfyUI gives is compared with diffusers, which the tests in `families/` compare with the equations.
"""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_invsr
import small_peft
import small_unet
import torch
from comfyui_host import HOW_TO_GET_ONE, installed_hosts, interpreter
from limits import HANGING_SECONDS
from onestep_sr.sr_models.core.model import SRModel
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.diffusers_host.lora import open_lora
from onestep_sr.sr_models.families import gdpo_sr, invsr, omgsr_s, s3diff
from onestep_sr.sr_models.families.convert import convert
from onestep_sr.sr_models.families.family import OneStepLora
from onestep_sr.sr_models.families.registry import read_lora
from places import HOST_SCRIPTS, ROOT
from small_sd3 import FULL_WIDTHS

HOSTS = installed_hosts()
TOLERANCE = 1e-4
STRENGTHS: dict[str, dict[str, dict[str, float]]] = {
    "pisa-sr": {
        "published": {},
        "two runs": {"pixel": 2.0, "semantic": 0.5},
        "pixel alone": {"pixel": 1.3, "semantic": 0.0},
    },
    "osediff": {"published": {}, "half": {"unet": 0.5}},
    "osediff, whole": {"published": {}},
    "hypir": {"published": {}, "half": {"unet": 0.5}},
    "omgsr-s": {"published": {}, "half": {"unet": 0.5}},
    "gdpo-sr": {"published": {}},
    "s3diff": {"published": {}, "half": {"unet": 0.5}},
    "invsr": {"published": {}},
}
RUNS = {"two runs": 2}
PROMPT = {each.name: each.prompt for each in (gdpo_sr.RECIPE, s3diff.RECIPE, invsr.RECIPE)}  # the others' is empty
BASES = dict.fromkeys(("s3diff", "invsr"), "SD-Turbo (Stable Diffusion 2.1)")
TEXTS = ("a lake", "", "a house, a lake, a boat")
SIGMA = {  # ComfyUI's, of the family's timestep
    "pisa-sr": 0.041279 / 0.999148,
    "osediff": 0.997667 / 0.068265,
    "hypir": 0.496294 / 0.868154,
    "omgsr-s": 0.603537 / 0.797335,
    "gdpo-sr": 0.325233 / 0.945634,
    "s3diff": 0.997667 / 0.068265,
    "invsr": 0.494734 / 0.869045,
}

pytestmark = pytest.mark.host


@pytest.fixture(scope="module", params=HOSTS or [None], ids=lambda folder: folder.name if folder else "none")
def folder(request: pytest.FixtureRequest) -> Path:
    if request.param is None:
        pytest.skip(HOW_TO_GET_ONE)
    return request.param


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    root = tmp_path_factory.mktemp("families")
    base = small_unet.write(root / "base", "2.1-base", FULL_WIDTHS)
    small_peft.calm_output(base)
    osediff = small_peft.osediff(base)
    contents = {"pisa-sr": small_peft.pisa_sr(base), "osediff": osediff, "hypir": small_peft.hypir(base)}
    contents["osediff, whole"] = small_peft.merged(base, osediff)
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    shared = {"kind": "2.1-base", "folder": str(base), "config": small_unet.comfyui_config("2.1-base"), "image": image}
    for family, content in contents.items():
        torch.save(content, root / f"{family}.pkl")
    files = {name: root / f"{name}.pkl" for name in contents}
    files["omgsr-s"] = small_peft.write_omgsr(root / "omgsr", small_peft.omgsr(base)) / omgsr_s.FILES[1]
    files["gdpo-sr"] = small_peft.write_gdpo(base, root / "gdpo") / gdpo_sr.FILES[0]
    files["s3diff"] = small_peft.write_s3diff(root / "s3diff", *small_peft.s3diff(base))
    files["invsr"] = small_invsr.write(root / "invsr")
    prompts = {name: small_peft.encoded(base, PROMPT.get(name, "")) for name in files}
    found = {
        name: shared | {"lora": str(file), "strengths": STRENGTHS[name], "prompt": prompts[name]}
        for name, file in files.items()
    }
    # S3Diff pads pictures to multiples of 64 px, and graphs of stock nodes pad latents.
    wide = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(1))
    found["s3diff"] |= {"image": wide, "negative": small_peft.encoded(base, s3diff.RECIPE.negative_prompt)}
    small = torch.rand(1, 3, 16, 32, generator=torch.Generator().manual_seed(2))
    found["invsr"] |= {"image": small, "scale": 4, "recipe": "invsr-s2"}
    convert(files["pisa-sr"], root / "whole.safetensors")
    small_peft.without(root / "whole.safetensors", "network/semantic/conv_out.", root / "part.safetensors")
    found["pisa-sr"] |= {"part": str(root / "part.safetensors"), "other": str(files["osediff"])}
    texts = {text: small_peft.encoded(base, text) for text in TEXTS[:2]}
    found["osediff"]["texts"] = texts | {TEXTS[2]: torch.cat(list(texts.values()), dim=1)}  # 154 tokens
    return found


@pytest.fixture(scope="module")
def expected(cases: dict[str, dict[str, Any]]) -> dict[tuple[str, str], dict[str, torch.Tensor]]:
    """With diffusers, by family and strengths."""
    found = {}
    for family, case in cases.items():
        for name, strengths in case["strengths"].items():
            lora, scale = read_lora(Path(case["lora"])).at(strengths), case.get("scale", 1)
            asked = {"whole": UpscaleOptions(scale), "tiled": UpscaleOptions(scale, tile=64, overlap=16)}
            model = with_diffusers(case, lora)
            found[family, name] = {way: upscale(model, case["image"], options) for way, options in asked.items()}
    return found


def with_diffusers(case: dict[str, Any], lora: OneStepLora, recipe: str | None = None) -> SRModel:
    model = open_lora(Path(case["folder"]), lora, recipe=recipe, dtype=torch.float32).model
    return replace(model, recipe=replace(model.recipe, shortest=0))


@pytest.fixture(scope="module")
def results(folder: Path, cases: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict:
    base = tmp_path_factory.mktemp("floats")
    (base / "onestep_sr").symlink_to(ROOT, target_is_directory=True)
    torch.save(cases, base / "cases.pt")
    command = [interpreter(folder), HOST_SCRIPTS / "families_in_comfyui.py", base, base / "cases.pt", base / "out.pt"]
    run = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=HANGING_SECONDS)
    assert run.returncode == 0, run.stderr[-3000:]
    return torch.load(base / "out.pt")


CASES = [(family, name) for family, all_strengths in STRENGTHS.items() for name in all_strengths]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_comfyui_gives_what_diffusers_gives(family, name, results, expected) -> None:
    """As one model, and built from stock nodes with the sampler; whole and in tiles."""
    found, truth = results[family][name], expected[family, name]
    for way, wanted in (("whole", "whole"), ("parts", "whole"), ("tiled", "tiled"), ("tiled parts", "tiled")):
        assert (found[way] - truth[wanted]).abs().max() < TOLERANCE, way
    assert found["whole"].std() > 0.05, "not a flat picture"


@pytest.mark.parametrize(("family", "name"), CASES)
def test_the_model_runs_at_the_published_timestep_and_no_more_often_than_needed(family, name, results) -> None:
    found, runs = results[family][name], RUNS.get(name, 1)
    assert found["runs"] == runs and found["seen"] == list(range(runs))
    assert found["tiles seen"] == list(range(len(found["tiles seen"]))) and len(found["tiles seen"]) % runs == 0
    sigma = SIGMA[family.split(",")[0]]
    assert all(abs(found_sigma - sigma) < 1e-4 * sigma for found_sigma in found["sigmas"])


def test_a_chosen_recipe_gives_what_diffusers_gives(results, cases, expected) -> None:
    case, found = cases["invsr"], results["invsr"]["chosen recipe"]
    model = with_diffusers(case, read_lora(Path(case["lora"])), case["recipe"])
    truth = upscale(model, case["image"], UpscaleOptions(case["scale"]))
    assert (found - truth).abs().max() < TOLERANCE < (found - expected["invsr", "published"]["whole"]).abs().max()


@pytest.mark.parametrize("family", STRENGTHS)
def test_the_lora_decides_recipe_and_prompt(family, results) -> None:
    found = results[family]["published"]
    assert (found["recipe"], found["prompt"], found["notices"]) == (
        family.split(",")[0],
        (PROMPT.get(family, ""), None),
        (),
    )


def test_the_nodes_give_the_same_and_read_each_file_of_a_graph_once(results, expected) -> None:
    found = results["pisa-sr"]["nodes"]
    for name in ("published", "two runs"):
        assert (found[name] - expected["pisa-sr", name]["whole"]).abs().max() < TOLERANCE
    assert (found["text"], found["sampler"]) == ("", (None, None))
    assert found["reads"] == ["pisa-sr.pkl", "osediff.pkl", "pisa-sr.pkl"], "the last one is no longer in the graph"


def test_a_converted_file_that_lacks_keys_is_refused(results) -> None:
    assert "of the connected MODEL that it should change are missing (conv_out)" in results["pisa-sr"]["part"]


def test_loras_of_two_methods_are_refused(results) -> None:
    model, vae, both = results["pisa-sr"]["mixed"]
    for kind, found in (("MODEL", model), ("VAE", vae)):
        words = f"The connected {kind} already has the LoRA of PiSA-SR, which cannot be combined with OSEDiff: "
        assert f"{words}connect the checkpoint's own {kind}." in found
    assert "The connected VAE has the LoRA of OSEDiff, but the MODEL that of PiSA-SR: connect both" in both


@pytest.mark.parametrize("way", ["batch", "lines", "regions"])
def test_each_image_of_a_batch_has_its_own_text(way, results) -> None:
    found = results["osediff"]["texts"]
    assert (found[way] - found["alone"]).abs().max() < TOLERANCE


def test_the_sampler_gives_each_image_of_a_batch_its_own_text(results) -> None:
    found = results["osediff"]["texts"]
    assert (found["sampled"] - found["sampled alone"]).abs().max() < TOLERANCE
    assert (found["sampled alone"] - found["alone"][:2]).abs().max() < TOLERANCE


def test_a_text_gives_what_diffusers_gives_with_it(results, cases) -> None:
    case, found = cases["osediff"], results["osediff"]["texts"]["alone"]
    lora = read_lora(Path(case["lora"])).at(list(case["strengths"].values())[-1]).with_captions()
    model = with_diffusers(case, lora)
    options = UpscaleOptions(1, tile=64, overlap=16)
    lake, other = (upscale(model.with_prompt(text), case["image"], options)[0] for text in ("a lake", "a mountain"))
    assert (found[0] - lake).abs().max() < TOLERANCE < (found[0] - other).abs().max()


def test_texts_that_do_not_belong_to_the_images_are_refused(results) -> None:
    batch, sampler, tokens, none = results["osediff"]["texts"]["sentences"]
    words = "The number of prompts (3) is not that of the images (2): connect one prompt, or one per image."
    assert words in batch and words in sampler
    assert "The prompts of the batch have 77 to 154 tokens, but One-Step SR Sampler needs the same number" in tokens
    assert "list of texts is empty" in none


def test_a_missing_connection_is_named(results) -> None:
    no_negative, no_vae, no_guidance = results["s3diff"]["sentences"]
    assert "needs a negative prompt: connect negative of One-Step SR Prompt" in no_negative
    assert "The connected VAE does not have the S3Diff LoRA: connect it through Apply One-Step SR LoRA" in no_vae
    for family, title in (("s3diff", "S3Diff"), ("invsr", "InvSR")):
        words = f"{title} depends on the picture: connect the small image to Apply One-Step SR LoRA"
        assert words in results[family]["no picture"]
    assert "use CFGGuider with cfg 1.07" in no_guidance


def test_a_vae_without_its_lora_is_named(results) -> None:
    told = {family: found["plain VAE"] for family, found in results.items() if "plain VAE" in found}
    assert {family for family, warnings in told.items() if warnings} == {
        "osediff",
        "osediff, whole",
        "omgsr-s",
        "gdpo-sr",
    }
    [words] = told["osediff"]
    assert words.startswith("OSEDiff also changes the VAE") and "connect vae of Apply One-Step SR LoRA" in words


@pytest.mark.parametrize("family", STRENGTHS)
def test_the_given_model_and_vae_are_not_changed(family, results) -> None:
    assert results[family]["as it was"] and results[family]["VAE as it was"]


@pytest.mark.parametrize("family", STRENGTHS)
def test_tensors_are_on_the_hosts_device(family, results) -> None:
    """A device without memory stands for a GPU."""
    assert results[family]["mixed devices"] == []


@pytest.mark.parametrize("family", STRENGTHS)
def test_a_base_with_v_prediction_is_refused(family, results) -> None:
    base = BASES.get(family, "Stable Diffusion 2.1")
    words = f"for {base} with epsilon prediction, but the connected MODEL is a Stable Diffusion"
    assert words in results[family]["refused"] and "with v prediction" in results[family]["refused"]
