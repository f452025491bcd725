"""The functions of `host_lora` for ComfyUI's MODEL of Stable Diffusion 1.5, 2.1 and SDXL."""

from __future__ import annotations

import comfy.utils
from comfy import model_sampling
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher

from ..sr_models.checkpoints.low_rank import Update
from ..sr_models.core.process import Process, variance_preserving
from ..sr_models.families.bases import BaseKind, unet_kind


def holds(model: ModelPatcher) -> bool:
    """Whether the MODEL has a U-Net."""
    return isinstance(model.model.diffusion_model, UNetModel)


def base_of(model: ModelPatcher) -> BaseKind:
    return unet_kind(prompt_width(model), process_of(model).prediction)


def prompt_width(model: ModelPatcher) -> int:
    return model.model.model_config.unet_config["context_dim"]


def process_of(model: ModelPatcher) -> Process:
    """The base's process, from ComfyUI's table of sigmas."""
    sampling = model.get_model_object("model_sampling")
    prediction = "v" if isinstance(sampling, model_sampling.V_PREDICTION) else "epsilon"
    return variance_preserving(prediction, 1 / (1 + sampling.sigmas.double().cpu() ** 2))


def latent_format() -> None:
    """None keeps ComfyUI's format: these latents are only scaled."""


def parameter_names(model: ModelPatcher) -> dict[str, str]:
    """ComfyUI's names of diffusers' parameters."""
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    return {parameter: f"diffusion_model.{name}" for parameter, name in names.items()}


def targets(model: ModelPatcher, update: Update) -> dict[str, tuple[str, tuple[int, ...]]]:
    """ComfyUI's key and the weight's shape for each diffusers module of the model."""
    state = model.model.state_dict()
    names = {parameter.removesuffix(".weight"): name for parameter, name in parameter_names(model).items()}
    return {module: (name, tuple(state[name].shape)) for module, name in names.items() if name in state}
