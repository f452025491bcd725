"""TAD-SeeSR in real ComfyUI: the same as with diffusers, its tagger, and what is refused."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_peft
import small_seesr
import small_unet
import torch
from comfyui_host import HOW_TO_GET_ONE, installed_hosts, interpreter
from limits import HANGING_SECONDS
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.diffusers_host.lora import open_lora
from onestep_sr.sr_models.families.registry import read_lora
from onestep_sr.sr_models.families.tad_seesr import FAMILY, FILES
from onestep_sr.sr_models.families.tagger import read_tagger
from places import HOST_SCRIPTS, ROOT
from small_sd3 import FULL_WIDTHS

TOLERANCE = 1e-4
TEXT = "a lake"

pytestmark = pytest.mark.host


@pytest.fixture(scope="module", params=installed_hosts() or [None], ids=lambda f: f.name if f else "none")
def folder(request: pytest.FixtureRequest) -> Path:
    if request.param is None:
        pytest.skip(HOW_TO_GET_ONE)
    return request.param


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("seesr")
    base = small_unet.write(root / "base", "2.1-base", FULL_WIDTHS)
    small_peft.calm_output(base)
    small_seesr.write_networks(base, root / "tadsr")
    small_seesr.write_ram(root / "ram")
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    images[1] **= 3
    small_seesr.write_thresholds(root / "ram", images[:1])
    tagger = read_tagger(root / "ram")
    tags = [tagger.tags(tagger.embedding(image))[0] for image in images.split(1)]
    prompts = [FAMILY.tagged_prompt.format(tags=line, text=TEXT) for line in tags]
    return {
        "kind": "2.1-base",
        "folder": str(base),
        "config": small_unet.comfyui_config("2.1-base"),
        "lora": str(root / "tadsr" / FILES[0]),
        "ram": str(root / "ram" / "ram_swin_large_14m.pth"),
        "images": images,
        "tags": "\n".join(tags),
        "text": TEXT,
        "encoded": {prompt: small_peft.encoded(base, prompt) for prompt in prompts},
        "prompts": prompts,
    }


@pytest.fixture(scope="module")
def expected(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    """With diffusers."""
    found = {}
    for way, recipe, options in (
        ("whole", None, UpscaleOptions(1)),
        ("tiled", None, UpscaleOptions(1, tile=32, overlap=16)),
        ("noise", "tad-seesr-noise", UpscaleOptions(1)),
        ("four steps", "tad-seesr-s4", UpscaleOptions(1)),
    ):
        lora = read_lora(Path(case["lora"])).with_tagger(Path(case["ram"]))
        model = open_lora(Path(case["folder"]), lora, prompt=TEXT, recipe=recipe, dtype=torch.float32).model
        model = replace(model, recipe=replace(model.recipe, shortest=0))
        found[way] = upscale(model, case["images"], options)
    return found


@pytest.fixture(scope="module")
def results(folder: Path, case: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    base = tmp_path_factory.mktemp("floats")
    (base / "onestep_sr").symlink_to(ROOT, target_is_directory=True)
    torch.save(case, base / "case.pt")
    command = [interpreter(folder), HOST_SCRIPTS / "seesr_in_comfyui.py", base, base / "case.pt", base / "out.pt"]
    run = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=HANGING_SECONDS)
    assert run.returncode == 0, run.stderr[-3000:]
    return torch.load(base / "out.pt")


@pytest.mark.parametrize("way", ["whole", "tiled", "noise", "four steps"])
def test_comfyui_gives_what_diffusers_gives(results, expected, way) -> None:
    assert (results[way] - expected[way]).abs().max() < TOLERANCE
    assert results[way].std() > 0.05, "not a flat picture"


@pytest.mark.parametrize("way", ["", " tiled"])
def test_the_sampler_takes_the_same_step(results, way) -> None:
    assert (results[f"sampler{way}"] - results[f"unmatched{way}"]).abs().max() < TOLERANCE


def test_each_image_of_a_batch_has_its_own_tags(results, case) -> None:
    assert (results["tags"], results["asked"]) == (case["tags"], case["prompts"])
    assert (results["whole"][0] - results["whole"][1]).abs().max() > 0.1


def test_two_copies_of_a_model_do_not_disturb_each_other(results) -> None:
    assert torch.equal(results["first again"], results["whole"]) and results["as it was"]


def test_tensors_are_on_the_hosts_device(results) -> None:
    """A device without memory stands for a GPU."""
    assert results["mixed devices"] == []


def test_comfyui_makes_room_for_the_image_attentions(results) -> None:
    assert results["larger"] > 0


def test_what_cannot_work_is_refused(results) -> None:
    assert "TAD-SeeSR attends to the picture, but the connected CONDITIONING" in results["without tags"]
    assert (
        "UserError: One-Step SR Tags needs CLIP to encode the tags, but the connected checkpoint has no text"
        in (results["without CLIP"])
    )
    assert "The number of prompts (2) is not that of the images (4)" in results["another batch"]
    assert "TAD-SeeSR attends to the picture, but the connected CONDITIONING" in results["sampler without tags"]
    assert "is for 2 images, but the latent for 3" in results["sampler with another batch"]
