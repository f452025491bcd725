"""Runs inside ComfyUI's own interpreter, from its folder: a one-step LoRA on a small U-Net, to floats.

python unet_in_comfyui.py FOLDER_OF_ONESTEP_SR CASES.pt RESULTS.pt [FAMILY.py ...]

A case by kind: `folder` (a diffusers one), `lora`, `config` (ComfyUI's of the U-Net), `kind`, `prompt`, `pooled`,
`image`. Each FAMILY.py has a family to register by the name GLOW.
"""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from pathlib import Path

package, cases, result, *family_files = sys.argv[1:]
sys.argv = [sys.argv[0], "--cpu"]
sys.path[:0] = [".", package]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sd  # noqa: E402
import torch  # noqa: E402
import utils.extra_config  # noqa: E402, F401 (before server.py puts comfy/utils.py in its way, as main.py does)
from onestep_sr.nodes import (  # noqa: E402
    host_lora,
    host_sd,
)
from onestep_sr.sr_models.core.options import UpscaleOptions  # noqa: E402
from onestep_sr.sr_models.core.upscale import upscale  # noqa: E402
from onestep_sr.sr_models.families.registry import FAMILIES, read_lora  # noqa: E402
from small_checkpoints import opened, read  # noqa: E402


def sentence(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def results_of(case):
    image, conditioning = case["image"], [[case["prompt"], {"pooled_output": case["pooled"]}]]
    base_model, base_vae = opened(case), comfy.sd.VAE(sd=read(Path(case["folder"]) / "vae"))
    before = {name: tensor.clone() for name, tensor in base_model.model.state_dict().items()}
    weights = read_lora(Path(case["lora"]))
    model, warning = host_lora.apply_lora(base_model, weights, 1.0)
    vae = host_lora.apply_vae_lora(base_vae, weights, 1.0)
    sr_model = host_lora.open_model(model, vae, conditioning, "tsd-sr").model
    sr_model = replace(sr_model, recipe=replace(sr_model.recipe, shortest=0, color="none"))
    [adapter] = weights.network
    elsewhere = {f"other.{module}": layer for module, layer in adapter.update.items()}
    other = replace(weights, network=(replace(adapter, update=elsewhere),))
    half = dict(list(adapter.update.items())[::2])
    part = replace(weights, network=(replace(adapter, update=half),))
    carriers = (base_model, model, model.clone())
    results = {
        "whole": upscale(sr_model, image, UpscaleOptions(1)),
        "tiled": upscale(sr_model, image, UpscaleOptions(1, tile=64, overlap=16)),
        "warning": warning,
        "carries": tuple(host_sd.carried_by(each) is not None for each in carriers),
        "without it": sentence(host_lora.open_model, base_model, vae, conditioning, "tsd-sr"),
        "VAE of SD3": sentence(host_sd.require_vae, vae, 16, str(weights.base)),
        "another prompt": sentence(host_lora.open_model, model, vae, [[torch.zeros(1, 7, 4096), {}]], "tsd-sr"),
        "another LoRA": sentence(host_lora.apply_lora, base_model, other, 1.0),
        "half a LoRA": sentence(host_lora.apply_lora, base_model, part, 1.0),
        "sizes": (len(adapter.update) - len(half), len(adapter.update)),
        "preview": tuple(sr_model.codec.preview(torch.zeros(1, 4, 8, 8)).shape),
    }
    comfy.model_management.unload_all_models()
    results["as it was"] = all(torch.equal(t, before[name]) for name, t in base_model.model.state_dict().items())
    return results


for file in family_files:
    FAMILIES.register(runpy.run_path(file)["GLOW"])
torch.set_grad_enabled(False)  # as the host runs its nodes
torch.save({kind: results_of(case) for kind, case in torch.load(cases).items()}, result)
