"""One-step LoRAs on Stable Diffusion 1.5, 2.1 and SDXL inside real ComfyUI, on small U-Nets, to floats."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import small_unet
import torch
from comfyui_host import HOW_TO_GET_ONE, installed_hosts, interpreter
from limits import HANGING_SECONDS
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.diffusers_host.lora import open_lora
from onestep_sr.sr_models.diffusers_host.unet_prompts import open_text_encoders
from onestep_sr.sr_models.families.tsd_sr import TSD_SR
from onestep_sr.sr_models.training.sd.bases import open_base
from onestep_sr.sr_models.training.sd.shared_base import SharedBase
from places import HOST_SCRIPTS, ROOT
from small_sd3 import FULL_WIDTHS
from small_training import RANKS, shaken

HOSTS = installed_hosts()
SCRIPT = HOST_SCRIPTS / "unet_in_comfyui.py"
TOLERANCE = 1e-4

pytestmark = pytest.mark.host


@pytest.fixture(scope="module", params=HOSTS or [None], ids=lambda folder: folder.name if folder else "none")
def folder(request: pytest.FixtureRequest) -> Path:
    if request.param is None:
        pytest.skip(HOW_TO_GET_ONE)
    return request.param


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of each kind, and the results with diffusers."""
    if not HOSTS:
        pytest.skip(HOW_TO_GET_ONE)
    root = tmp_path_factory.mktemp("unets")
    torch.save({kind: case(root / kind, kind) for kind in small_unet.KINDS}, root / "cases.pt")
    return root / "cases.pt"


def case(root: Path, kind: str) -> dict:
    base = small_unet.write(root / "base", kind, FULL_WIDTHS)
    shaken(SharedBase(open_base(base, torch.float32), RANKS)).save(root / "lora")
    condition = open_text_encoders(base, device=torch.device("cpu"), dtype=torch.float32)(TSD_SR.prompt)
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    loaded = open_lora(base, root / "lora", dtype=torch.float32).model
    bare = replace(loaded, recipe=replace(loaded.recipe, shortest=0, color="none"))
    asked = {"whole": UpscaleOptions(1), "tiled": UpscaleOptions(1, tile=64, overlap=16)}
    expected = {name: upscale(bare, image, options) for name, options in asked.items()}
    files = {"kind": kind, "folder": str(base), "lora": str(root / "lora"), "image": image, "expected": expected}
    config = {"config": small_unet.comfyui_config(kind)}
    return files | config | {"prompt": condition.prompt, "pooled": condition.pooled}


@pytest.fixture(scope="module")
def all_results(folder: Path, cases: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    base = tmp_path_factory.mktemp("floats")
    (base / "onestep_sr").symlink_to(ROOT, target_is_directory=True)
    arguments = [interpreter(folder), SCRIPT, base, cases, base / "results.pt"]
    run = subprocess.run(arguments, check=False, cwd=folder, capture_output=True, text=True, timeout=HANGING_SECONDS)
    assert run.returncode == 0, run.stderr[-3000:]
    made = torch.load(cases)
    found = torch.load(base / "results.pt")
    return {kind: results | {"expected": made[kind]["expected"]} for kind, results in found.items()}


@pytest.fixture(params=small_unet.KINDS)
def results(request: pytest.FixtureRequest, all_results: dict) -> dict:
    return all_results[request.param]


@pytest.mark.parametrize("name", ["whole", "tiled"])
def test_comfyui_gives_what_diffusers_gives(name: str, results: dict) -> None:
    difference = (results[name] - results["expected"][name]).abs().max()
    assert difference < TOLERANCE, difference
    assert results[name].std() > 0.05, "not a flat picture"


def test_only_the_patched_model_has_the_lora(results: dict) -> None:
    assert results["carries"] == (False, True, True) and results["as it was"] and not results["warning"]
    assert results["preview"] == (1, 3, 8, 8)


def test_mismatches_are_rejected_in_one_sentence(results: dict) -> None:
    assert "connect it through Apply One-Step SR LoRA" in results["without it"]
    assert "(16 channels)" in results["VAE of SD3"] and ", 4 channels)" in results["VAE of SD3"]
    assert "has width 4096, but" in results["another prompt"] and "'from text'" in results["another prompt"]
    missing, whole = results["sizes"]
    assert f"{missing} of the {whole} modules of the connected MODEL that it should" in results["half a LoRA"]
    assert "lacks" in results["another LoRA"] and "Stable Diffusion with a U-Net" in results["another LoRA"]
