"""TSD-SR inside real ComfyUI: floats through its interpreter, and the nodes through its server."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_sd3
import torch
from comfyui_host import HOW_TO_GET_ONE, Host, Prompt, events, installed_hosts, interpreter, start, stop
from limits import HANGING_SECONDS
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.step import OneStep
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.diffusers_host.lora import open_lora
from onestep_sr.sr_models.families.tsd_sr import SD35_WARNING
from onestep_sr.sr_models.training.sd.bases import open_base
from onestep_sr.sr_models.training.sd.shared_base import SharedBase
from PIL import Image
from places import HOST_SCRIPTS, PHOTOS, ROOT
from small_training import RANKS, shaken

HOSTS = installed_hosts()
SCRIPT = HOST_SCRIPTS / "sd3_in_comfyui.py"
PHOTO = PHOTOS / "houses.png"
TOLERANCE = 1e-4
APPLY, PROMPT, SAMPLER, MODEL = "OneStepSRApplyLoRA", "OneStepSRPrompt", "OneStepSRSampler", "OneStepSRModel"

pytestmark = pytest.mark.host


@pytest.fixture(scope="module", params=HOSTS or [None], ids=lambda folder: folder.name if folder else "none")
def folder(request: pytest.FixtureRequest) -> Path:
    if request.param is None:
        pytest.skip(HOW_TO_GET_ONE)
    return request.param


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> small_sd3.SmallSD3:
    if not HOSTS:
        pytest.skip(HOW_TO_GET_ONE)
    return small_sd3.write(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def sd35(small: small_sd3.SmallSD3, tmp_path_factory: pytest.TempPathFactory) -> small_sd3.SmallSD3:
    files = small_sd3.write_sd35(tmp_path_factory.mktemp("sd35"), small.folder / "vae")
    shaken(SharedBase(open_base(files.folder, torch.float32), RANKS)).save(files.root / "trained")
    return files


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


# Floats


@pytest.fixture(scope="module")
def diffusers_results(small, sd35, image) -> dict[str, torch.Tensor]:
    """The results with diffusers, which tests/diffusers_host/test_sd3.py compares with peft's."""

    def run(files, lora=small.lora, **options):
        loaded = open_lora(files.folder, lora, embeddings=small.embeddings, dtype=torch.float32).model
        bare = replace(loaded, recipe=replace(loaded.recipe, shortest=0, color="none"))
        return upscale(bare, image, UpscaleOptions(1, **options))

    results = {"whole": run(small), "tiled": run(small, tile=64, overlap=16), "SD3.5": run(sd35)}
    results["trained on SD3.5"] = run(sd35, sd35.root / "trained")
    with small_sd3.step_of_tsd_sr(OneStep(250.0, noised=True)):
        return results | {"noised at 250": run(small)}


@pytest.fixture(scope="module")
def comfyui_results(folder, small, sd35, image, tmp_path_factory) -> dict:
    base = tmp_path_factory.mktemp("floats")
    (base / "onestep_sr").symlink_to(ROOT, target_is_directory=True)
    torch.save(image, base / "image.pt")
    arguments = [base, small.root, sd35.root, base / "image.pt", base / "result.pt"]
    run = subprocess.run(
        [interpreter(folder), SCRIPT, *arguments],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=HANGING_SECONDS,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return torch.load(base / "result.pt")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("whole", "whole"),
        ("parts", "whole"),
        ("two halves", "whole"),
        ("tiled", "tiled"),
        ("tiled parts", "tiled"),
        ("batched parts", "tiled"),
        ("SD3.5", "SD3.5"),
        ("trained on SD3.5", "trained on SD3.5"),
        ("noised at 250", "noised at 250"),
    ],
)
def test_comfyui_gives_what_diffusers_gives(name, expected, comfyui_results, diffusers_results):
    assert (comfyui_results[name] - diffusers_results[expected]).abs().max() < TOLERANCE


def test_strength_and_mask_do_what_they_say(comfyui_results):
    assert (comfyui_results["half"] - comfyui_results["whole"]).abs().max() > 10 * TOLERANCE
    assert torch.allclose(comfyui_results["masked"], comfyui_results["without step"], atol=1e-5)


def test_fp8_weights_take_the_lora(comfyui_results):
    assert comfyui_results["fp8 weights"] == "torch.float8_e4m3fn"
    assert (comfyui_results["fp8"] - comfyui_results["whole"]).abs().mean() < 0.02


def test_tensors_are_on_the_hosts_device(comfyui_results):
    """A device without memory stands for a GPU."""
    assert comfyui_results["mixed devices"] == []


def test_the_given_model_and_vae_are_not_changed(comfyui_results):
    assert comfyui_results["model as it was"] and comfyui_results["VAE as it was"]
    assert comfyui_results["latent format as it was"] == "SD3"
    assert torch.equal(comfyui_results["encoded before"], comfyui_results["encoded after"])
    assert all(key.startswith("encoder.") for key in comfyui_results["patched VAE keys"])
    assert len(comfyui_results["patched VAE keys"]) == 31


@pytest.mark.parametrize("way", ["encode", "decode"])
def test_the_seamless_vae_equals_the_stock_one(way, comfyui_results):
    stock, seamless = comfyui_results[f"stock {way}"], comfyui_results[f"seamless {way}"]
    assert seamless.shape == stock.shape
    assert (seamless - stock).abs().max() < TOLERANCE


def test_the_seamless_vae_reports_its_progress(comfyui_results):
    steps = comfyui_results["steps"]
    ends = [(done, total) for done, total in steps if done == total]
    assert len(ends) == 2 and len(steps) > 100


def test_tiles_that_overflow_are_computed_in_float32(comfyui_results):
    assert comfyui_results["precisions"][-1] == "torch.float32"
    assert comfyui_results["before a run"] == ("torch.float32", True)
    assert (comfyui_results["fp8 in float32"] - comfyui_results["fp8"]).abs().max() < TOLERANCE


def test_the_host_is_asked_for_no_more_memory_than_is_needed(comfyui_results):
    """For 2048 px in float32: attention's input, keys and values, 512 channels at 256 px, and 18 rows of the widest
    layer, an upsampling convolution of 256 channels to 2048 px: three times its input and its output."""
    assert comfyui_results["asked to free"] == [12345]
    told, untiled = comfyui_results["for 2048 px"]
    bands = 4 * (3 * 512 * 256**2 + 18 * 3 * (256 + 256) * 2048)
    assert told == int(bands / 0.7) < untiled / 10
    assert comfyui_results["for 64 px"] == 10**6


def test_mismatches_are_rejected_in_one_sentence(comfyui_results):
    assert comfyui_results["warning"] == () and comfyui_results["SD3.5 warning"] == (SD35_WARNING,)
    assert comfyui_results["trained on SD3.5 warning"] == ()
    refusals = comfyui_results["refusals"] | {"unshifted": comfyui_results["unshifted"]}
    expected = {
        "part of a LoRA": "1 of the 24 modules of the connected MODEL that it should change are missing (proj_out)",
        "part of a VAE's": "1 of the 31 modules of the connected VAE that it should change are missing (encoder.mid_",
        "SD1.5": "but the connected MODEL is Stable Diffusion 1.5",
        "VAE of 4 channels": "(TAESD, 4 channels)",
        "TAESD": "(TAESD, 16 channels)",
        "seamless VAE with another clamp": "Use ComfyUI's VAE Decode (Tiled) for it",
        "sigmas": "start at 0.5",
        "latent": "got (1, 4, 8, 8)",
        "unshifted": "has no one-step LoRA: connect it through Apply One-Step SR LoRA",
    }
    assert refusals.keys() == expected.keys()
    for name, words in expected.items():
        assert refusals[name].startswith("UserError: ") and words in refusals[name], refusals[name]
        assert refusals[name].endswith(".") and "\n" not in refusals[name]


# The server


@pytest.fixture(scope="module")
def host(folder, small, sd35, transparent, tmp_path_factory) -> Iterator[Host]:
    base = tmp_path_factory.mktemp("base")
    for kind in ("checkpoints", "diffusion_models", "loras", "onestep_sr"):
        (base / "models" / kind).mkdir(parents=True)
    (base / "models" / "checkpoints" / "sd3.safetensors").symlink_to(small.checkpoint)
    (base / "models" / "diffusion_models" / "sd35.safetensors").symlink_to(sd35.checkpoint)
    (base / "models" / "loras" / "tsdsr").symlink_to(small.lora, target_is_directory=True)
    (base / "models" / "onestep_sr" / "tsdsr").symlink_to(small.embeddings, target_is_directory=True)
    (base / "input").mkdir()
    photo = Image.open(PHOTO).convert("RGB")
    photo.crop((0, 0, 64, 48)).save(base / "input" / "small.png")
    shutil.copy(transparent, base / "input" / "example.png")
    running = start(folder, base)
    yield running
    stop(running)


def graph(image: str = "small.png") -> Prompt:
    """The nodes that both workflows share."""
    apply = {"model": ["1", 0], "vae": ["1", 2], "lora": "tsdsr/transformer.safetensors", "vae_lora": "auto"}
    prompt = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd3.safetensors"}},
        "2": {"class_type": APPLY, "inputs": apply | {"strength_model": 1.0, "strength_vae": 1.0}},
        "3": {"class_type": PROMPT, "inputs": {"embeddings": "tsdsr/prompt_embeds.pt", "text": ""}},
        "4": {"class_type": "LoadImage", "inputs": {"image": image}},
    }
    return prompt


def all_in_one(image: str = "small.png", scale: float = 1.0, **changes: object) -> Prompt:
    upscaling = {"sr_model": ["5", 0], "image": ["4", 0], "mask": ["4", 1], "upscale_by": scale}
    upscaling |= {"tile": 0, "overlap": 64, "color": "auto", "seed": 0}
    model = {"model": ["2", 0], "vae": ["2", 1], "conditioning": ["3", 0], "recipe": "tsd-sr"}
    prompt = graph(image) | {
        "5": {"class_type": MODEL, "inputs": model},
        "6": {"class_type": "OneStepSRUpscaleImage", "inputs": upscaling},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "whole"}},
    }
    for name, value in changes.items():
        next(entry for entry in prompt.values() if name in entry["inputs"])["inputs"][name] = value
    return prompt


def stock_parts(tile: int = 64, overlap: int = 8, batch: int = 1, save: str = "SaveImage", seed: int = 0) -> Prompt:
    prompt = graph() | {
        "5": {"class_type": "VAEEncode", "inputs": {"pixels": ["4", 0], "vae": ["2", 1]}},
        "6": {"class_type": SAMPLER, "inputs": {"tile": tile, "overlap": overlap, "batch": batch}},
        "7": {"class_type": "BasicGuider", "inputs": {"model": ["2", 0], "conditioning": ["3", 0]}},
        "8": {"class_type": "RandomNoise", "inputs": {"noise_seed": seed}},
        "9": {
            "class_type": "SamplerCustomAdvanced",
            "inputs": {
                "noise": ["8", 0],
                "guider": ["7", 0],
                "sampler": ["6", 0],
                "sigmas": ["6", 1],
                "latent_image": ["5", 0],
            },
        },
        "10": {"class_type": "VAEDecode", "inputs": {"samples": ["9", 0], "vae": ["2", 1]}},
    }
    inputs = {"images": ["10", 0]} if save == "SaveImage" else {"samples": ["9", 0]}
    return prompt | {"11": {"class_type": save, "inputs": inputs | {"filename_prefix": "parts"}}}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_stock_parts_equal_the_core(host, small):
    [path] = host.results(stock_parts())
    model = open_lora(small.folder, small.lora, embeddings=small.embeddings, dtype=torch.float32).model
    model = replace(model, recipe=replace(model.recipe, shortest=0, color="none"))
    photo = torch.tensor(pixels(host.base / "input" / "small.png")).movedim(-1, 0)[None] / 255
    expected = (upscale(model, photo, UpscaleOptions(1))[0].movedim(0, -1) * 255).numpy()
    assert np.abs(pixels(path) - expected).max() < 1.01  # Save Image cuts fractions off


def test_seeds_change_nothing(host):
    [first], [second] = host.results(stock_parts(seed=1)), host.results(stock_parts(seed=2))
    assert np.array_equal(pixels(first), pixels(second))


@pytest.fixture(scope="module")
def transparent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    picture = Image.open(PHOTO).convert("RGB").crop((0, 0, 70, 64))
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    picture.save(path := tmp_path_factory.mktemp("transparent") / "example.png")
    return path


@pytest.fixture(scope="module")
def from_the_command_line(small, transparent, tmp_path_factory) -> Path:
    result = tmp_path_factory.mktemp("result") / "example.png"
    command = [
        sys.executable,
        "-m",
        "onestep_sr",
        "upscale",
        transparent,
        "-o",
        result,
        "--scale",
        "3",
        "--tile",
        "384",
    ]
    command += ["--base", small.folder, "--lora", small.lora, "--embeddings", small.embeddings, "--dtype", "fp32"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True, timeout=HANGING_SECONDS)
    return result


@pytest.mark.slow
def test_the_workflow_gives_the_exact_size_with_alpha_and_the_command_lines_picture(host, from_the_command_line):
    client = "watcher"
    stream = events(host, client)
    prompt_id = host.queue(all_in_one("example.png", 3.0, tile=384), client)
    previews, progress = 0, []
    for event in stream:
        if isinstance(event, bytes):
            previews += 1
        elif event["type"] == "progress":
            progress.append((event["data"]["value"], event["data"]["max"]))
        elif event["type"] in ("execution_success", "execution_error"):
            break
    entry = host.wait(prompt_id)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
    [saved] = entry["outputs"]["7"]["images"]
    result = pixels(host.base / "output" / saved["filename"])
    assert result.shape == (192, 210, 4)
    assert progress[-1] == (4, 4) and previews >= 4
    assert np.abs(result - pixels(from_the_command_line)).max() <= 1


def test_twenty_runs_do_not_grow(host):
    """Seeds differ, so that the host cannot use cached results."""
    resident = {}
    for run in range(1, 21):
        host.results(stock_parts(tile=16, overlap=4, seed=1000 + run))
        resident[run] = host.resident_bytes()
    assert resident[20] <= 1.02 * resident[5], resident


def test_the_warning_for_sd35_is_shown_on_the_node(host):
    prompt = stock_parts(save="SaveLatent")
    prompt["1b"] = {"class_type": "UNETLoader", "inputs": {"unet_name": "sd35.safetensors", "weight_dtype": "default"}}
    prompt["2"]["inputs"]["model"] = ["1b", 0]
    client = "warned"
    stream = events(host, client)
    prompt_id = host.queue(prompt, client)
    texts = []
    for event in stream:
        if isinstance(event, bytes) and event[:4] == b"\x00\x00\x00\x03":
            texts.append(event[8:].decode())
        elif isinstance(event, dict) and event["type"] in ("execution_success", "execution_error"):
            break
    assert host.wait(prompt_id)["status"]["status_str"] == "success"
    assert texts == [f"2{SD35_WARNING}"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embeddings": "from text"}, "connect CLIP, or choose embeddings"),
        ({"lora": "tsdsr/vae.safetensors", "vae_lora": "tsdsr/vae.safetensors"}, "both for the VAE encoder"),
    ],
)
def test_errors_are_one_sentence(changes, words, host):
    message = host.error(all_in_one(**changes))
    assert words in message and message.strip().endswith(".") and "\n" not in message.strip()
    assert host.results(stock_parts(save="SaveImage", seed=77))


def seamless_parts(memory: int = 0) -> Prompt:
    prompt = stock_parts()
    for node_id, kind in (("5", "OneStepSRVAEEncode"), ("10", "OneStepSRVAEDecode")):
        prompt[node_id]["class_type"] = kind
        prompt[node_id]["inputs"]["memory"] = memory
    return prompt


def test_the_seamless_nodes_can_replace_the_stock_ones(host):
    [stock], [seamless], [frugal] = (host.results(p) for p in (stock_parts(), seamless_parts(), seamless_parts(64)))
    for path in (seamless, frugal):
        assert np.abs(pixels(path) - pixels(stock)).max() <= 1


def test_cancel_stops_a_seamless_decode_within_a_few_bands(host):
    prompt = graph() | {
        "5": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 768, "height": 768, "batch_size": 1}},
        "6": {"class_type": "OneStepSRVAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2], "memory": 128}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "cancelled"}},
    }
    client = uuid.uuid4().hex
    told = events(host, client)
    next(told)
    host.queue(prompt, client)
    done, total = 0, 1
    for event in told:
        if not isinstance(event, dict):
            continue
        if event["type"] == "progress":
            done, total = event["data"]["value"], event["data"]["max"]
            host.post("/interrupt", {})
        if event["type"] in ("execution_interrupted", "execution_success", "execution_error"):
            assert event["type"] == "execution_interrupted"
            break
    assert done < total / 4
    assert host.results(stock_parts(seed=5))


def test_a_budget_that_is_too_small_says_how_much_is_needed(host):
    message = host.error(seamless_parts(1))
    assert re.search(r"use at least \d+ MB\.", message), message


def test_a_model_without_the_lora_is_refused(host):
    prompt = all_in_one()
    prompt["5"]["inputs"]["model"] = ["1", 0]
    assert "connect it through Apply One-Step SR LoRA" in host.error(prompt)
