"""The Automatic1111 adapter's batches, with a host of empty modules."""

from __future__ import annotations

import importlib
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from formula_model import formula_model
from onestep_sr.sr_models.codecs.pixel_shuffle import PixelShuffleCodec
from onestep_sr.sr_models.core.model import SRModel
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.process import flow_level
from onestep_sr.sr_models.core.recipe import Recipe
from onestep_sr.sr_models.core.step import OneStep
from onestep_sr.sr_models.families.bundled import FAMILY as BUNDLED
from PIL import Image

ADAPTER = "onestep_sr.scripts.onestep_sr_webui"
SUBMODULES = ("devices", "modelloader", "paths", "sd_models", "shared")


class Limited:
    """A denoiser with memory for windows of 16 x 16."""

    dtype = torch.float32

    def __init__(self):
        self.failures = 0

    def run(self, work, shape, condition=None):
        return work(self)

    def tiles_at_once(self, shape):
        return 1

    def memory(self, shape):
        return 0

    def __call__(self, latent, lr, timestep):
        if latent.shape[-1] > 16:
            self.failures += 1
            raise MemoryError
        return torch.zeros_like(latent)


@pytest.fixture
def adapter(monkeypatch, tmp_path):
    modules = MagicMock()
    modules.shared.state = SimpleNamespace(interrupted=False, skipped=False, textinfo="", job_timestamp="1")
    modules.shared.opts = SimpleNamespace(live_previews_enable=False, onestep_sr_dtype="fp32", onestep_sr_budget=0)
    modules.devices.without_autocast = nullcontext
    modules.devices.device_esrgan = torch.device("cpu")
    modules.paths.models_path = str(tmp_path)
    modules.sd_models.model_data.sd_model = None
    parts = {f"modules.{name}": getattr(modules, name) for name in SUBMODULES}
    for name, module in {"gradio": modules.gradio, "modules": modules, **parts}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "backend", None)
    models = importlib.import_module(f"{ADAPTER}.models")
    yield models, modules
    for name in [name for name in sys.modules if name.startswith(ADAPTER)]:
        del sys.modules[name]


def test_memory_runs_out_once_per_batch_and_is_reported(adapter, monkeypatch):
    models, modules = adapter
    recipe = Recipe("test", "Test", "", OneStep(1000.0, level=flow_level(1000.0)), tile=32, overlap=4, multiple=8)
    limited = Limited()
    opened = models.OpenedModel(BUNDLED, SRModel(recipe, limited, PixelShuffleCodec(4)))
    monkeypatch.setattr(models, "_open", lambda *choice: opened)
    choice, picture = models.Choice(Path("model.safetensors")), Image.new("RGB", (40, 50), (90, 120, 30))
    for batch in (1, 2):
        modules.shared.state.job_timestamp = str(batch)
        for _ in range(3):
            assert models.upscale(choice, picture, UpscaleOptions(2)).size == (80, 100)
        assert limited.failures == batch
    assert [call.args for call in modules.gradio.Warning.call_args_list] == [
        ("Memory ran out: the rest of this run uses tiles of 64 px.",)
    ] * 2


@pytest.fixture
def files(adapter, tmp_path):
    """Empty files of a published model and of two LoRA sets, in the folders of the host."""
    _, modules = adapter
    folders = tmp_path / "OneStepSR", tmp_path / "Lora", tmp_path / "Stable-diffusion"
    for folder, name in (
        (folders[0], "TAD-SR.pth"),
        (folders[0], "autoencoder_vq_f4.pth"),
        (folders[0], "prompt/prompt_embeds.pt"),
        (folders[0], "prompt/pool_embeds.pt"),
        (folders[1], "tsdsr/transformer.safetensors"),
        (folders[1], "tsdsr/vae.safetensors"),
        (folders[1], "on 1.5/unet.safetensors"),
        (folders[1], "on 1.5/vae.safetensors"),
        (folders[2], "sd3.safetensors"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"one")
    modules.shared.cmd_opts.lora_dir = str(folders[1])
    modules.modelloader.load_models = lambda folder, ext_filter: [
        str(path) for path in sorted(Path(folder).rglob("*")) if path.suffix in ext_filter
    ]
    modules.sd_models.checkpoint_aliases = {"sd3": SimpleNamespace(filename=str(folders[2] / "sd3.safetensors"))}
    return folders


def test_loras_that_the_host_cannot_run_are_not_listed(adapter, files):
    models, _ = adapter
    assert list(models.listed()) == ["One-Step SR x4", "One-Step SR: TAD-SR", "TSD-SR: tsdsr"]


@pytest.mark.parametrize("name", ["One-Step SR: TAD-SR", "TSD-SR: tsdsr"])
def test_a_model_is_opened_again_only_if_one_of_its_files_was_replaced(adapter, files, name, monkeypatch):
    models, _ = adapter
    opened = []
    made = models.OpenedModel(BUNDLED, formula_model())
    monkeypatch.setattr(models, "load", lambda *args, **options: opened.append(args) or made)
    monkeypatch.setattr(models, "open_lora", lambda *args, **options: opened.append(args) or made)
    monkeypatch.setattr(models, "read_lora", lambda path: SimpleNamespace(embeddings=None))
    choice, picture = models.choose(name, "sd3"), Image.new("RGB", (16, 16))
    used = [path for folder in files for path in folder.rglob("*") if path.is_file() and "1.5" not in str(path)]
    used = [path for path in used if (path.parent == files[0]) != choice.is_lora]
    assert len(used) == (5 if choice.is_lora else 2)
    for count, path in enumerate([None, *used], 1):
        if path is not None:
            path.write_bytes(b"another")
        for _ in range(2):
            models.upscale(choice, picture, UpscaleOptions(2))
        assert len(opened) == count, path


def test_a_run_can_be_interrupted_while_an_autoencoder_works(adapter, monkeypatch):
    models, modules = adapter

    class Slow(PixelShuffleCodec):
        def encode(self, image, stage=None):
            modules.shared.state.interrupted = True
            stage(1, 2)
            raise AssertionError("not stopped")

    slow = replace(formula_model(), denoiser=Limited(), codec=Slow(4))
    monkeypatch.setattr(models, "_open", lambda *choice: models.OpenedModel(BUNDLED, slow))
    choice = models.Choice(Path("model.safetensors"))
    assert models.upscale(choice, Image.new("RGB", (16, 16)), UpscaleOptions(2)) is None
    assert modules.shared.state.textinfo == "encoding or decoding, 50 %"


def test_the_host_is_asked_for_the_memory_of_a_tile(adapter, monkeypatch):
    models, _ = adapter
    asked, limited = [], Limited()
    limited.memory = lambda shape: 2**31 * shape[-1]
    opened = models.OpenedModel(BUNDLED, replace(formula_model(), denoiser=limited))
    monkeypatch.setattr(models, "_open", lambda *choice: opened)
    monkeypatch.setattr(models.host, "room_for", lambda size: asked.append(size) or nullcontext())
    models.upscale(models.Choice(Path("model.safetensors")), Image.new("RGB", (16, 16)), UpscaleOptions(2))
    assert asked == [2**31 * 16]


@pytest.fixture
def section(adapter, monkeypatch):
    """The section in Extras, with parts of the host that do nothing."""
    models, modules = adapter
    modules.scripts_postprocessing.ScriptPostprocessing = object
    for name in ("scripts_postprocessing", "ui_common", "ui_components"):
        monkeypatch.setitem(sys.modules, f"modules.{name}", getattr(modules, name))
    return importlib.import_module(f"{ADAPTER}.extras").ExtrasSection(), models


def test_a_size_strength_and_wrap_reach_the_core_and_the_metadata(section, monkeypatch):
    extras, models = section
    asked = []
    monkeypatch.setattr(models, "upscale", lambda choice, image, options: asked.append(options) or image)
    picture = SimpleNamespace(image=Image.new("RGB", (400, 300)), shared=SimpleNamespace(), info={})
    chosen = {"enable": True, "model": models.BUNDLED_NAME, "size": "longest side", "pixels": 1000, "megapixels": 3}
    extras.process_firstpass(picture, **chosen)
    assert (picture.shared.target_width, picture.shared.target_height) == (1000, 750)
    extras.process(picture, **chosen, tile=0, overlap=64, strength=0.5, wrap="x")
    assert asked[0].size(300, 400) == (750, 1000)
    assert (asked[0].strength, asked[0].wrap) == (0.5, "x")
    shown = {name.removeprefix("One-Step SR "): value for name, value in picture.info.items() if value is not None}
    assert shown["size"] == "longest side 1000 px" and "scale" not in shown
    assert (shown["strength"], shown["wrap"]) == (0.5, "x")


def test_callers_that_know_no_size_and_strength_get_the_scale(section, monkeypatch):
    extras, models = section
    asked = []
    monkeypatch.setattr(models, "upscale", lambda choice, image, options: asked.append(options) or image)
    picture = SimpleNamespace(image=Image.new("RGB", (40, 30)), shared=SimpleNamespace(), info={})
    extras.process_firstpass(picture, enable=True, scale=2.5)
    extras.process(picture, enable=True, model=models.BUNDLED_NAME, scale=2.5, overlap=64)
    assert (picture.shared.target_width, picture.shared.target_height) == (100, 75)
    assert asked == [UpscaleOptions(2.5, overlap=64)]
