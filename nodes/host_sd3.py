"""TSD-SR's LoRA on ComfyUI's MODEL of Stable Diffusion 3, and its step as the host's sampler."""

from __future__ import annotations

import itertools
from typing import Any

import comfy.lora
import torch
from comfy import latent_formats, model_base, model_management
from comfy.model_patcher import ModelPatcher
from comfy.samplers import Sampler
from comfy.sd import VAE
from torch import Tensor

from ..sr_models.canvas.resize import pad_to_multiple
from ..sr_models.canvas.tiling import Tile, plan
from ..sr_models.checkpoints.lora_fit import require_fit
from ..sr_models.checkpoints.low_rank import Update
from ..sr_models.core.model import SRModel
from ..sr_models.core.process import flow_level
from ..sr_models.core.tiled_step import Canvas, step_tiles
from ..sr_models.errors import UserError
from ..sr_models.families import one_step_lora
from ..sr_models.families.one_step_lora import SD3_MEDIUM, SD35_MEDIUM, TSD_FAMILY, TSD_SR, TSDWeights
from .host_sd import LATENT_FORMAT, Conditioning, GuidedDenoiser, VAECodec, as_network, patch, require_vae

LATENT_CHANNELS = 16


class TSDLatent(latent_formats.SD3):
    """SD3's latents as TSD-SR has them: scaled, not shifted."""

    def __init__(self) -> None:
        super().__init__()
        # What previews show for a latent that is not shifted, from the factors for one that is.
        lift = self.shift_factor * self.scale_factor
        columns = zip(*self.latent_rgb_factors, strict=True)
        bias = zip(self.latent_rgb_factors_bias, columns, strict=True)
        self.latent_rgb_factors_bias = [constant - lift * sum(column) for constant, column in bias]
        self.shift_factor = 0.0


# LoRA


def apply_lora(model: ModelPatcher, weights: TSDWeights, strength: float) -> tuple[ModelPatcher, str]:
    """A MODEL with TSD-SR's LoRA and latents, and a warning or an empty text. The given MODEL stays as it was.

    Raises UserError where the MODEL is no Stable Diffusion 3, or the LoRA does not fit it.
    """
    warning = _check_base(model, weights)
    targets = _transformer_targets(model, weights.transformer)
    shapes = {module: shape for module, (_, shape) in targets.items()}
    require_fit(weights.transformer, shapes, weights.name, f"the connected {_title(model)}", weights.base)
    patched = model.clone()
    patch(patched, weights.transformer, {module: key for module, (key, _) in targets.items()}, strength)
    patched.add_object_patch(LATENT_FORMAT, TSDLatent())
    return patched, warning


def _transformer_targets(model: ModelPatcher, update: Update) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """The host's key and the weight's shape for each diffusers module of the model.

    A key is a name, or a name with a range of rows (dimension, start, length) and a function on the change.
    """
    state = model.model.state_dict()
    targets = {}
    for name, key in comfy.lora.model_lora_keys_unet(model.model, {}).items():
        module = name.removeprefix(one_step_lora.TRANSFORMER_PREFIX)
        weight = key if isinstance(key, str) else key[0]
        if module == name or weight not in state:
            continue
        shape = tuple(state[weight].shape)
        rows = None if isinstance(key, str) else key[1]
        if rows is not None:
            shape = (rows[2], *shape[1:])
        is_partial = isinstance(key, str) and module in update and update[module].rows < shape[0]
        targets[module] = ((key, (0, 0, update[module].rows)) if is_partial else key, shape)
    return targets


def _check_base(model: ModelPatcher, weights: TSDWeights) -> str:
    """Refuse what is no SD3; the warning for what is near it, unless the LoRA was trained on that."""
    name, base = weights.name, weights.base
    if not isinstance(model.model, model_base.SD3):
        raise UserError(
            f"{name} is a TSD-SR LoRA for {base}, but the connected MODEL is {_title(model)}: connect a checkpoint of "
            f"{base}."
        )
    config = model.model.model_config.unet_config
    if not config.get("qk_norm"):
        return ""
    if not config.get("x_block_self_attn_layers"):
        raise UserError(
            f"{name} is a TSD-SR LoRA for {base}, but the connected MODEL is Stable Diffusion 3.5 large: connect a "
            f"checkpoint of {base}."
        )
    return "" if base == SD35_MEDIUM else one_step_lora.SD35_WARNING


def _title(model: ModelPatcher) -> str:
    if isinstance(model.model, model_base.SD3):
        return SD35_MEDIUM if model.model.model_config.unet_config.get("qk_norm") else "Stable Diffusion 3"
    return type(model.model.model_config).__name__


def require_tsd(model: ModelPatcher) -> None:
    """Raise UserError unless the MODEL carries TSD-SR's latents, which comes with its LoRA."""
    if not isinstance(model.get_model_object(LATENT_FORMAT), TSDLatent):
        raise UserError(
            "The connected MODEL has no TSD-SR LoRA of Stable Diffusion 3: connect it through Apply One-Step SR LoRA. "
            "With another Stable Diffusion use One-Step SR Model and Upscale Image (One-Step SR)."
        )


def open_model(model: ModelPatcher, vae: VAE, conditioning: Conditioning, recipe: str) -> SRModel:
    """Raises UserError for a MODEL without TSD-SR's LoRA, and for another model's VAE."""
    require_tsd(model)
    require_vae(vae, LATENT_CHANNELS, SD3_MEDIUM)
    return SRModel(TSD_FAMILY[recipe], GuidedDenoiser(model, conditioning, flow_level, 1.0), VAECodec(vae, TSDLatent()))


# Sampler


class OneStepSampler(Sampler):
    """TSD-SR's step for ComfyUI's own sampling nodes: it starts from the latent image and adds no noise.

    Tile and overlap are in latent pixels; `batch` tiles run at once.
    """

    def __init__(self, tile: int, overlap: int, batch: int):
        self.tile, self.overlap, self.batch = tile, overlap, batch

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> Tensor:
        require_tsd(model_wrap.model_patcher)
        latent_image = _checked_start(latent_image, sigmas)
        height, width = latent_image.shape[-2:]
        latent = pad_to_multiple(latent_image, TSD_SR.multiple)
        tiles = plan(latent.shape[-2], latent.shape[-1], self.tile, self.overlap)
        growing, result = latent.clone(), torch.zeros_like(latent)
        count = itertools.count()

        def show(tile: Tile, piece: Tensor) -> None:
            tile.cut(growing).copy_(piece)
            done = next(count)
            if callback is not None and done + 1 < len(tiles):
                callback(done, growing[..., :height, :width], latent_image, len(tiles))
            model_management.throw_exception_if_processing_interrupted()

        network = as_network(model_wrap, noise.device, extra_args, flow_level)
        canvas = Canvas(latent, None, lr=latent)  # this network looks at the latent only
        if step_tiles(network, TSD_SR.step, canvas, list(tiles), result, batch=self.batch, done=show):
            raise UserError("The model gave values that are not finite: load the checkpoint in another precision.")
        result = result[..., :height, :width]
        if denoise_mask is not None:
            result = latent_image + (result - latent_image) * denoise_mask
        if callback is not None:
            callback(len(tiles) - 1, result, latent_image, len(tiles))
        return result


def _checked_start(latent: Tensor | None, sigmas: Tensor) -> Tensor:
    if latent is None or latent.ndim != 4 or latent.shape[1] != LATENT_CHANNELS:
        raise UserError(
            f"One-Step SR Sampler starts from a picture's latent with {LATENT_CHANNELS} channels, and got "
            f"{None if latent is None else tuple(latent.shape)}: connect VAE Encode with the VAE of Apply One-Step "
            "SR LoRA."
        )
    if abs(float(sigmas[0]) - 1) > 1e-3:
        raise UserError(
            f"One-Step SR Sampler takes its step at sigma 1, and the connected SIGMAS begin at {sigmas[0]:.3g}: "
            "connect its own SIGMAS output."
        )
    return latent
