"""The adapter in real hosts without a checkpoint (Automatic1111, Forge, Forge Neo, reForge), and what needs no host."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_sd3
import torch
from forge_host import AUTOMATIC1111, FORGE, FORGE_NEO, HOSTS, REFORGE, WebUI
from onestep_sr.sr_models.core.devices import default_dtype
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.diffusers_host.lora import open_lora
from onestep_sr.sr_models.families.bundled import BUNDLED
from onestep_sr.sr_models.families.loading import load
from onestep_sr.sr_models.files.picture import from_pillow, to_pillow
from onestep_sr.sr_models.jobs.enlarge import enlarge
from onestep_sr.sr_models.networks.swin_unet import SwinUNet
from onestep_sr.sr_models.networks.vq_autoencoder import VQAutoencoder
from PIL import Image
from places import PHOTOS, ROOT
from safetensors.torch import save_file

DTYPE = default_dtype(torch.device("cpu"))


@pytest.fixture(scope="module", params=HOSTS)
def host(request: pytest.FixtureRequest) -> WebUI:
    found = HOSTS[request.param]
    if not found.is_installed:
        pytest.skip(found.how_to_get_it)
    return found


@pytest.fixture(scope="module")
def data(host: WebUI, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A typical data folder: the extension under another name, models, checkpoints, pictures and a ComfyUI."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "extensions").mkdir()
    (folder / "extensions" / "1 upscaler-main").symlink_to(ROOT, target_is_directory=True)
    write_pictures(folder)
    models = folder / "models" / "OneStepSR"
    (models / "faces").mkdir(parents=True)
    shutil.copy(BUNDLED, models / "faces" / "mine.safetensors")
    (models / "empty.pth").touch()
    write_published(models)
    write_tsd_sr(folder, tmp_path_factory.mktemp("small"))
    write_comfyui(folder)
    return folder


def write_pictures(folder: Path) -> None:
    (folder / "input").mkdir()
    (folder / "large").mkdir()
    for name in ("houses", "sky"):
        Image.open(PHOTOS / f"{name}.png").convert("RGB").crop((0, 0, 97, 83)).save(folder / "input" / f"{name}.png")
    transparent = Image.open(folder / "input" / "houses.png")
    transparent.putalpha(Image.linear_gradient("L").resize(transparent.size))
    transparent.save(folder / "input" / "transparent.png")
    Image.open(PHOTOS / "sky.png").convert("RGB").crop((0, 0, 40, 30)).save(folder / "small.png")
    for name in ("a", "b"):
        transparent.resize((200, 200)).save(folder / "large" / f"{name}.png")


def write_published(folder: Path) -> None:
    """TAD-SR's two files in full size, random, with one number a row so that they are small on disk."""
    random = torch.Generator().manual_seed(0)
    for network, name in ((SwinUNet, "TAD-SR.pth"), (VQAutoencoder, "autoencoder_vq_f4.pth")):
        with torch.device("meta"):
            state = network().state_dict()
        torch.save({key: rows(t, random) if t.is_meta else t for key, t in state.items()}, folder / name)


def rows(tensor: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    numbers = torch.randn(len(tensor), generator=random, dtype=torch.float16) / (tensor[0].numel() ** 0.5)
    return numbers.view(-1, *[1] * (tensor.ndim - 1)).expand(tensor.shape)


def write_tsd_sr(folder: Path, small: Path) -> None:
    """A small Stable Diffusion 3 in a folder of its own, TSD-SR's files among the LoRA files and its prompt in ours."""
    files = small_sd3.write(small, vae_widths=(32, 32, 64, 64))
    for target, source in (
        (folder / "checkpoints", files.checkpoint),
        (folder / "models" / "Lora" / "tsdsr", files.lora),
        (folder / "models" / "OneStepSR" / "default", files.embeddings),
    ):
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            target.mkdir()
            shutil.copy(source, target)
    save_file({"weight": torch.zeros(2)}, folder / "checkpoints" / "other.safetensors")


def write_comfyui(folder: Path) -> None:
    """An installation of ComfyUI, which Forge Neo can refer to, with one file of each kind."""
    models = folder / "ComfyUI" / "models"
    shutil.copytree(folder / "models" / "Lora" / "tsdsr", models / "loras" / "theirs")
    (models / "checkpoints").mkdir()
    save_file({"weight": torch.zeros(2)}, models / "checkpoints" / "theirs.safetensors")
    (models / "onestep_sr").mkdir()
    shutil.copy(BUNDLED, models / "onestep_sr" / "theirs.safetensors")


@pytest.fixture(scope="module")
def results(host: WebUI, data: Path) -> dict:
    """The results of in_forge.py; `log` is the host's output."""
    refers = ("--forge-ref-comfy-home", data / "ComfyUI") if host is FORGE_NEO else ()
    log = host.run(data, *refers)
    return {"log": log, **json.loads((data / "results" / "results.json").read_text())}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def assert_core_made(
    data: Path, result: str, source: str, options: UpscaleOptions, model: Path = BUNDLED, dtype=DTYPE
) -> None:
    loaded = load(model, dtype=dtype).model
    assert_same(data / "results" / f"{result}.png", enlarged(loaded, data / f"{source}.png", options))


def enlarged(model, source: Path, options: UpscaleOptions) -> np.ndarray:
    return np.asarray(to_pillow(enlarge(model, from_pillow(Image.open(source)), options))).astype(int)


def assert_same(path: Path, wanted: np.ndarray) -> None:
    """To one level of 255: both run the same code, perhaps with another torch."""
    result = pixels(path)
    assert result.shape == wanted.shape
    assert np.abs(result - wanted).max() <= 1


@pytest.mark.host
def test_the_folder_loads_under_any_name_and_apart_from_an_installed_package(results):
    assert "Error loading script" not in results["log"]
    assert results["our packages"] == ["onestep_sr_extension"]


UPSCALERS = ["One-Step SR x4", "One-Step SR: empty", "One-Step SR: faces/mine", "One-Step SR: TAD-SR"]
UPSCALER_LISTS = (
    "extras_upscaler_1",
    "txt2img_hr_upscaler",
    "script_sd_upscale_upscaler_index",
    "setting_upscaler_for_img2img",
)


def ours(names: list[str]) -> list[str]:
    return sorted(name for name in names if "One-Step" in name)


@pytest.mark.host
def test_upscalers_are_the_models_that_need_no_checkpoint_listed_once(results, host):
    theirs = ["One-Step SR: theirs"] if host is FORGE_NEO else []
    names = sorted([*UPSCALERS, *theirs])
    assert ours(results["upscalers"]) == ours(results["listed"]) == names
    for place in UPSCALER_LISTS:
        assert ours(results["lists"][place]) == names, place
    loras = ["TSD-SR: theirs", "TSD-SR: tsdsr"] if theirs else ["TSD-SR: tsdsr"]
    assert sorted(results["lists"]["extras_onestep_sr_model"]) == sorted([*names, *loras])


@pytest.mark.host
def test_checkpoints_are_those_of_the_host(results, host):
    theirs = {"theirs.safetensors"} if host is FORGE_NEO else set()
    assert set(results["lists"]["extras_onestep_sr_checkpoint"]) == {"sd3.safetensors", "other.safetensors", *theirs}
    assert "no longer loads Stable Diffusion 3" in results["info"]


@pytest.mark.host
def test_refreshing_finds_new_files_and_loses_none(results, host):
    before, after = results["lists"], results["refreshed"]
    new = {"extras_onestep_sr_model": "One-Step SR: new", "extras_onestep_sr_checkpoint": "new.safetensors"}
    if host is FORGE_NEO:  # the only one that can refresh its upscalers
        new["extras_upscaler_1"] = "One-Step SR: new"
        assert sorted(after["all"]) == sorted([*results["upscalers"], "One-Step SR: new"])
    for place, name in new.items():
        assert sorted(after[place]) == sorted([*before[place], name])


@pytest.mark.host
def test_a_video_in_extras_is_upscaled_frame_by_frame(results, host):
    if host is not FORGE_NEO:
        pytest.skip("only Forge Neo has videos in Extras")
    assert results["video"] == [[60, 80, 3]] * 3


@pytest.mark.host
def test_a_torch_file_needs_no_check_of_the_host(results, host):
    """Automatic1111 refuses what recent versions of torch save, and its `torch.load` returns None for it."""
    assert results["host reads"] is (host is not AUTOMATIC1111)


@pytest.mark.host
def test_settings_are_beside_those_of_upscaling(results):
    assert results["categories"]["onestep_sr_tile"] == results["categories"]["ESRGAN_tile"]


@pytest.mark.host
def test_memory_and_precision_are_those_of_the_host(results, host):
    managers = {FORGE: "backend.memory_management", FORGE_NEO: "backend.memory_management"}
    managers |= {REFORGE: "ldm_patched.modules.model_management", AUTOMATIC1111: None}
    assert results["memory management"] == managers[host]
    (theirs, on_gpu), (_, on_cpu) = results["precision"]
    assert on_cpu == str(DTYPE)
    # reForge was started with --unet-in-fp8-e4m3fn, which is only for storing weights.
    assert (theirs, on_gpu) == (("torch.float8_e4m3fn", "torch.float32") if host is REFORGE else (theirs, theirs))


@pytest.mark.host
def test_an_upscaler_gives_the_cores_result(results, data):
    assert_core_made(data, "upscaler", "input/houses", UpscaleOptions(2.03, overlap=64))
    assert_core_made(data, "interface", "input/transparent", UpscaleOptions(4, overlap=64))
    published = data / "models" / "OneStepSR" / "TAD-SR.pth"
    assert_core_made(data, "TAD-SR", "small", UpscaleOptions(4, overlap=64), published)
    assert pixels(data / "results" / "hires fix.png").shape == (210, 250, 3)
    assert results["batch"] == [[194, 166], [194, 166]]
    assert "Postprocess upscaler: One-Step SR x4" in results["interface text"]


@pytest.mark.host
def test_an_upscaler_takes_any_scale(results, data):
    assert pixels(data / "results" / "own file.png").shape == (9 * 30, 9 * 40, 3)
    assert pixels(data / "results" / "shrunk.png").shape == (15, 20, 3)


@pytest.mark.host
def test_the_section_keeps_alpha_and_writes_its_parameters(results, data):
    assert_core_made(data, "extras", "input/transparent", UpscaleOptions(2.5, overlap=64, seed=7))
    text = "One-Step SR model: One-Step SR x4, One-Step SR scale: 2.5, One-Step SR overlap: 64, One-Step SR seed: 7"
    assert text in results["text"]
    assert {"extras_onestep_sr", "extras_onestep_sr_tile", "setting_onestep_sr_tile"} <= set(results["elements"])


@pytest.mark.host
def test_a_folder_is_upscaled_picture_by_picture(results, data):
    assert results["folder"] == ["houses.png", "sky.png", "transparent.png"]
    with Image.open(data / "results" / "folder" / "transparent.png") as last:
        assert last.mode == "RGBA" and last.size == (194, 166)
        assert "One-Step SR scale: 2" in last.info["postprocessing"]


@pytest.mark.host
def test_interrupt_ends_a_run_within_a_tile_and_saves_nothing(results):
    run = results["interrupted"]
    assert run["saved"] == []
    assert run["tiles"] <= run["tiles at the interrupt"] + 2 < run["of"]
    assert re.search(r"tile \d+ of \d+", run["progress"]["textinfo"])
    assert 0 < run["progress"]["progress"] < 0.5  # of the first of two pictures
    assert run["job"][1] == 2
    assert run["progress"]["current_image"]


@pytest.mark.host
def test_tsd_sr_runs_on_a_checkpoint_of_the_host(results, data):
    models = data / "models"
    loaded = open_lora(
        data / "checkpoints" / "sd3.safetensors",
        models / "Lora" / "tsdsr",
        embeddings=models / "OneStepSR" / "default",
        dtype=DTYPE,
    )
    wanted = enlarged(loaded.model, data / "input" / "sky.png", UpscaleOptions(2, overlap=0))
    result = pixels(data / "results" / "TSD-SR.png")
    assert result.shape == wanted.shape
    assert np.abs(result - wanted).mean() < 1  # another version of diffusers computes in another order
    assert "One-Step SR checkpoint: sd3.safetensors" in results["TSD-SR text"]


@pytest.mark.host
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("scale", "Scale 11 is out of range"),
        ("overlap", "Overlap 100 does not fit a tile of 128"),
        ("small", "The picture is 5 x 9 px"),
        ("gone", "One-Step SR: gone no longer exists"),
        ("empty", "empty.pth is empty"),
        ("no checkpoint", "TSD-SR: tsdsr needs Stable Diffusion 3"),
        ("wrong checkpoint", "other.safetensors does not contain a Stable Diffusion 3 transformer"),
    ],
)
def test_failures_are_one_sentence_under_the_picture(results, name, words):
    shown = results["failures"][name]
    assert re.match(rf"<div class=.error.>UserError: {re.escape(words)}[^\n]*\.</div>", shown), shown


@pytest.mark.host
def test_settings_hold_for_upscalers(results, data):
    names = {"tile": 0, "overlap": 64, "color": "auto", "detail": 1.0, "strength": 1.0, "dtype": "auto", "budget": 0}
    assert results["settings"] == {f"onestep_sr_{name}": value for name, value in names.items()}
    options = UpscaleOptions(4, tile=128, overlap=64, color="wavelet")
    assert_core_made(data, "settings", "input/houses", options, dtype=torch.float32)


@pytest.mark.host
def test_without_memory_management_the_hosts_model_is_unloaded_when_memory_is_short(results):
    """Uses stand-ins for Automatic1111's two functions, because Automatic1111 itself was not available."""
    assert results["calls"] == [2**20, "model to the CPU", 2**34, "model back"]


# Without a host


def test_scripts_stays_a_package_that_extensions_share():
    """Others import `scripts.their_file`: a regular package of that name here would hide all of theirs."""
    assert not (ROOT / "scripts" / "__init__.py").exists()


def test_install_does_nothing_outside_the_host(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "install.py"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout == done.stderr == ""


def test_install_asks_the_host_for_what_is_missing_only(tmp_path):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "launch_utils.py").write_text(
        "def is_installed(package): return package == 'safetensors'\ndef run_pip(command, what): print(command)\n"
    )
    done = subprocess.run(
        [sys.executable, ROOT / "install.py"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},  # as the host calls it
        check=True,
    )
    assert done.stdout == "install --no-deps einops\n"
