"""Small U-Nets as ComfyUI builds them for a checkpoint, for scripts in its interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import comfy.model_patcher
import comfy.utils
import torch
from comfy import model_base, supported_models


class SmallSD2(supported_models.SD20):
    unet_extra_config: ClassVar = {}  # the real one's heads are wider than this U-Net


class SmallSDXL(supported_models.SDXL):
    unet_extra_config: ClassVar = {}


def read(folder):
    return comfy.utils.load_torch_file(str(folder / "diffusion_pytorch_model.safetensors"))


def opened(case):
    """The U-Net as the host builds it for a checkpoint of this kind."""
    config = dict(case["config"])
    if case["kind"] == "SDXL":
        model = model_base.SDXL(SmallSDXL(config))
    else:
        is_v = case["kind"] == "2.1"
        model_type = model_base.ModelType.V_PREDICTION if is_v else model_base.ModelType.EPS
        kind = supported_models.SD15 if case["kind"] == "1.5" else SmallSD2
        model = model_base.BaseModel(kind(config), model_type=model_type)
    names, weights = comfy.utils.unet_to_diffusers(config), read(Path(case["folder"]) / "unet")
    found = model.diffusion_model.load_state_dict({names[name]: tensor for name, tensor in weights.items()})
    assert not found.missing_keys
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
