"""The functions of `host_lora` for ComfyUI's MODEL of Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from typing import Any

import comfy.lora
from comfy import latent_formats, model_base
from comfy.model_patcher import ModelPatcher

from ..sr_models.checkpoints.low_rank import Update
from ..sr_models.core.process import Process, flow_matching
from ..sr_models.families.bases import BaseKind, sd3_kind


class UnshiftedLatent(latent_formats.SD3):
    """The latent format of one-step LoRAs on SD3: scaled, not shifted."""

    def __init__(self) -> None:
        super().__init__()
        # The preview factors are for shifted latents: correct their bias for latents that are not shifted.
        lift = self.shift_factor * self.scale_factor
        columns = zip(*self.latent_rgb_factors, strict=True)
        bias = zip(self.latent_rgb_factors_bias, columns, strict=True)
        self.latent_rgb_factors_bias = [constant - lift * sum(column) for constant, column in bias]
        self.shift_factor = 0.0


# Functions that host_lora calls


def holds(model: ModelPatcher) -> bool:
    """Whether the MODEL is a Stable Diffusion 3 or 3.5."""
    return isinstance(model.model, model_base.SD3)


def base_of(model: ModelPatcher) -> BaseKind:
    config = model.model.model_config.unet_config
    return sd3_kind(normalized=bool(config.get("qk_norm")), dual=bool(config.get("x_block_self_attn_layers")))


def prompt_width(model: ModelPatcher) -> int:
    return model.model.diffusion_model.context_embedder.in_features


def process_of(model: ModelPatcher) -> Process:
    """The straight path: the schedule's shift only selects timesteps for sampling in many steps."""
    return flow_matching(shift=1.0)


def latent_format() -> UnshiftedLatent:
    return UnshiftedLatent()


def parameter_names(model: ModelPatcher) -> dict[str, str]:
    """ComfyUI's names of diffusers' parameters, for those that are whole parameters in ComfyUI."""
    return {f"{module}.weight": key for module, key in _keys(model).items() if isinstance(key, str)}


def targets(model: ModelPatcher, update: Update) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """ComfyUI's key and the weight's shape for each diffusers module of the model.

    A key is a name, or a name with a range of rows (dimension, start, length) and an optional function that is applied
    to the change.
    """
    state = model.model.state_dict()
    found = {}
    for module, key in _keys(model).items():
        weight = key if isinstance(key, str) else key[0]
        if weight not in state:
            continue
        shape = tuple(state[weight].shape)
        rows = None if isinstance(key, str) else key[1]
        if rows is not None:
            shape = (rows[2], *shape[1:])
        is_partial = isinstance(key, str) and module in update and update[module].rows < shape[0]
        found[module] = ((key, (0, 0, update[module].rows)) if is_partial else key, shape)
    return found


def _keys(model: ModelPatcher) -> dict[str, Any]:
    """ComfyUI's keys by diffusers' module names. Its list also has other spellings, without this prefix."""
    keys, prefix = comfy.lora.model_lora_keys_unet(model.model, {}), "transformer."
    return {name.removeprefix(prefix): key for name, key in keys.items() if name.startswith(prefix)}
