"""The functions of `host_lora` for ComfyUI's MODEL of Stable Diffusion 3 and 3.5, and the step as a ComfyUI sampler."""

from __future__ import annotations

import itertools
from typing import Any

import comfy.lora
import torch
from comfy import latent_formats, model_base, model_management
from comfy.model_patcher import ModelPatcher
from comfy.samplers import Sampler
from torch import Tensor

from ..sr_models.canvas.resize import pad_to_multiple
from ..sr_models.canvas.tiling import Tile, plan
from ..sr_models.checkpoints.low_rank import Update
from ..sr_models.core.process import Process, flow_matching
from ..sr_models.core.recipe import Recipe
from ..sr_models.core.tiled_step import Canvas, step_tiles
from ..sr_models.errors import UserError
from ..sr_models.families.bases import BaseKind, sd3_kind
from ..sr_models.families.family import on_base
from .host_sd import as_network, carried_by

LATENT_CHANNELS = 16


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


# Sampler


class OneStepSampler(Sampler):
    """A LoRA's step as a sampler for ComfyUI's own sampling nodes. It starts from the latent image and adds no noise.

    `tile` and `overlap` are in latent pixels; `batch` is how many tiles the model processes at once.
    """

    def __init__(self, tile: int, overlap: int, batch: int):
        self.tile, self.overlap, self.batch = tile, overlap, batch

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> Tensor:
        recipe, process = _recipe_of(model_wrap.model_patcher), process_of(model_wrap.model_patcher)
        latent_image = _checked_start(latent_image, sigmas)
        height, width = latent_image.shape[-2:]
        latent = pad_to_multiple(latent_image, recipe.multiple)
        tiles = plan(latent.shape[-2], latent.shape[-1], self.tile, self.overlap)
        growing, result = latent.clone(), torch.zeros_like(latent)
        count = itertools.count()

        def show(tile: Tile, piece: Tensor) -> None:
            tile.cut(growing).copy_(piece)
            done = next(count)
            if callback is not None and done + 1 < len(tiles):
                callback(done, growing[..., :height, :width], latent_image, len(tiles))
            model_management.throw_exception_if_processing_interrupted()

        network = as_network(model_wrap, noise.device, extra_args, process.level)
        canvas = Canvas(latent, None, lr=latent)  # this network does not use the LR picture
        if step_tiles(network, recipe.step, canvas, list(tiles), result, batch=self.batch, done=show):
            raise UserError("The model returned values that are not finite: load the checkpoint in another precision.")
        result = result[..., :height, :width]
        if denoise_mask is not None:
            result = latent_image + (result - latent_image) * denoise_mask
        if callback is not None:
            callback(len(tiles) - 1, result, latent_image, len(tiles))
        return result


def _recipe_of(model: ModelPatcher) -> Recipe:
    """The recipe of the MODEL's LoRA. Raises UserError for a MODEL without a LoRA for Stable Diffusion 3."""
    carried = carried_by(model)
    if carried is None or carried.base.network != "transformer":
        raise UserError(
            "The connected MODEL has no one-step LoRA for Stable Diffusion 3: connect it through Apply One-Step SR "
            "LoRA. With another Stable Diffusion, use One-Step SR Model and Upscale Image (One-Step SR)."
        )
    return on_base(carried.family.recipe(carried.recipe), process_of(model))


def _checked_start(latent: Tensor | None, sigmas: Tensor) -> Tensor:
    if latent is None or latent.ndim != 4 or latent.shape[1] != LATENT_CHANNELS:
        raise UserError(
            f"One-Step SR Sampler needs the latent of an image with {LATENT_CHANNELS} channels, but got "
            f"{None if latent is None else tuple(latent.shape)}: connect VAE Encode with the VAE of Apply One-Step "
            "SR LoRA."
        )
    if abs(float(sigmas[0]) - 1) > 1e-3:
        raise UserError(
            f"One-Step SR Sampler starts at sigma 1, but the connected SIGMAS start at {sigmas[0]:.3g}: connect its "
            "own SIGMAS output."
        )
    return latent
