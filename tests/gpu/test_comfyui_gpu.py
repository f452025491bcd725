"""The nodes inside real ComfyUI servers on a CUDA GPU: where they run, and the memory that they take and give back.

Each server runs with ComfyUI's own memory management by default (dynamic VRAM where it has that), without dynamic VRAM,
and with all but a few GB reserved for others.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import small_sd3
import torch
from comfyui_host import HOW_TO_GET_ONE, Host, Prompt, installed_hosts, start, stop, to_prompt
from limits import HANGING_SECONDS
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.families.loading import load
from onestep_sr.sr_models.files.read import read_picture
from PIL import Image
from places import PHOTOS, template
from safetensors.torch import save_file
from torch import Tensor

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")]

MIB = 2**20
NAME = "photo.png"
VAE = "random.safetensors"
LARGE = 2048  # side of a picture whose decoding takes long enough to watch
BUDGET = 2048  # MB
WEIGHTS = 360 * MIB  # of the VAE in float32
BESIDE = 1024 * MIB  # buffers of libraries and of the host
LEFT = 2  # GB that are not reserved for others, so that the VAE's weights stay in main memory in part
WITHOUT_DYNAMIC = "--disable-dynamic-vram"
ENABLED = "DynamicVRAM support detected and enabled"
MODES = ("default", "low VRAM", "reserved")


def options(folder: Path, mode: str) -> list[str]:
    """The VAE is in float32, so that results can be compared."""
    found = ["--fp32-vae"]
    if mode == "low VRAM":
        knows = WITHOUT_DYNAMIC in (folder / "comfy" / "cli_args.py").read_text()
        found += ["--lowvram", *([WITHOUT_DYNAMIC] if knows else [])]
    if mode == "reserved":
        found += ["--reserve-vram", str(torch.cuda.mem_get_info()[0] / 2**30 - LEFT)]
    return found


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random VAE of Stable Diffusion 3, of which ComfyUI knows the full width only."""
    network, file = small_sd3.build_vae(small_sd3.FULL_WIDTHS), tmp_path_factory.mktemp("vae") / VAE
    small_sd3.fill(network, torch.Generator().manual_seed(0))
    save_file({name: weight.contiguous() for name, weight in network.state_dict().items()}, file)
    return file


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(
    scope="module", params=installed_hosts() or [None], ids=lambda folder: folder.name if folder else "none"
)
def host(
    request: pytest.FixtureRequest, mode: str, vae: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    if request.param is None:
        pytest.skip(HOW_TO_GET_ONE)
    base = tmp_path_factory.mktemp("base")
    for folder in ("input", "models/vae"):
        (base / folder).mkdir(parents=True)
    shutil.copy(PHOTOS / "grass.png", base / "input" / NAME)
    (base / "models" / "vae" / VAE).symlink_to(vae)
    running = start(request.param, base, options(request.param, mode))
    yield running
    stop(running)


def quick_start(host: Host, seed: int = 0) -> Prompt:
    """The workflow with the bundled model. Another seed makes ComfyUI run it again."""
    prompt = to_prompt(json.loads(template("quick-start").read_text()), host.object_info)
    for node in prompt.values():
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = NAME
        if node["class_type"] == "OneStepSRUpscaleImage":
            node["inputs"]["seed"] = seed
    return prompt


def there_and_back(encode: str, decode: str, **memory: int) -> Prompt:
    """The photo through both halves of the VAE."""
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": NAME}},
        "2": {"class_type": "VAELoader", "inputs": {"vae_name": VAE}},
        "3": {"class_type": encode, "inputs": {"pixels": ["1", 0], "vae": ["2", 0], **memory}},
        "4": {"class_type": decode, "inputs": {"samples": ["3", 0], "vae": ["2", 0], **memory}},
        "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "vae"}},
    }


def large_decode(height: int) -> Prompt:
    size = {"width": LARGE, "height": height, "batch_size": 1}
    return {
        "1": {"class_type": "EmptySD3LatentImage", "inputs": size},
        "2": {"class_type": "VAELoader", "inputs": {"vae_name": VAE}},
        "3": {
            "class_type": "OneStepSRVAEDecode",
            "inputs": {"samples": ["1", 0], "vae": ["2", 0], "memory": BUDGET},
        },
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    }


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def in_use(host: Host) -> int:
    """Bytes of the GPU in use, by anyone, without what torch keeps to use again."""
    device = host.get_json("/system_stats")["devices"][0]
    assert device["type"] == "cuda"
    return device["vram_total"] - device["vram_free"]


def held(host: Host) -> int:
    """Bytes of the server's tensors on the GPU."""
    device = host.get_json("/system_stats")["devices"][0]
    return device["torch_vram_total"] - device["torch_vram_free"]


def freed(host: Host) -> None:
    """Unload all models, which the server does between two prompts."""
    host.post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(3)


def highest_use(host: Host, prompt: Prompt) -> int:
    """Run a prompt that must succeed; returns the most bytes that were in use meanwhile."""
    prompt_id, most, end = host.queue(prompt), 0, time.monotonic() + HANGING_SECONDS
    while prompt_id not in (history := host.get_json(f"/history/{prompt_id}")) and time.monotonic() < end:
        most = max(most, in_use(host))
    assert history[prompt_id]["status"]["status_str"] == "success", history[prompt_id]["status"]["messages"]
    return most


def test_dynamic_vram_is_on_where_the_host_has_it(host: Host, mode: str) -> None:
    knows = ENABLED in (host.folder / "main.py").read_text()
    assert (ENABLED in host.log) == (knows and mode != "low VRAM"), host.log[-2000:]


def test_the_bundled_model_gives_the_cpus_result(host: Host) -> None:
    photo: Tensor = read_picture(PHOTOS / "grass.png").pixels[None, :3]
    [path] = host.results(quick_start(host))
    expected = upscale(load().model, photo)[0].movedim(0, -1).numpy() * 255
    assert pixels(path).shape == expected.shape
    assert np.abs(pixels(path) - expected).max() < 4, "float16 on the GPU"


def test_the_bundled_model_loads_and_unloads(host: Host) -> None:
    freed(host)
    before = held(host)
    host.results(quick_start(host, seed=1))
    assert held(host) > before + MIB, "its 1.3 million weights are on the GPU"
    freed(host)
    assert held(host) <= before + MIB // 4


def test_the_seamless_vae_gives_the_hosts_result(host: Host) -> None:
    [stock] = host.results(there_and_back("VAEEncode", "VAEDecode"))
    for memory in (0, 64):  # all free memory, and maps in main memory
        [seamless] = host.results(there_and_back("OneStepSRVAEEncode", "OneStepSRVAEDecode", memory=memory))
        assert np.abs(pixels(seamless) - pixels(stock)).max() <= 2


def test_a_large_decode_stays_within_its_memory_and_gives_it_back(host: Host) -> None:
    highest_use(host, large_decode(LARGE // 2))  # libraries keep memory of their own from the first use on
    freed(host)
    before = in_use(host)
    used = highest_use(host, large_decode(LARGE)) - before
    assert BUDGET * MIB // 4 < used < BUDGET * MIB + WEIGHTS + BESIDE, f"{used // MIB} MiB"
    freed(host)
    left = in_use(host) - before
    assert left < 256 * MIB, f"{left // MIB} MiB"
