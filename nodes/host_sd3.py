"""ComfyUI's MODEL, VAE and CONDITIONING of Stable Diffusion 3 as the core's denoiser and codec."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import comfy.lora
import torch
from comfy import latent_formats, model_base, model_management
from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider, Sampler
from comfy.sd import VAE
from torch import Tensor

from ..sr_models.checkpoints import low_rank, tsd_sr
from ..sr_models.checkpoints.low_rank import Update
from ..sr_models.checkpoints.tsd_sr import SD3_MEDIUM, SD35_MEDIUM, TSDWeights
from ..sr_models.checkpoints.weights_file import shortened
from ..sr_models.errors import UserError
from ..sr_models.image import pad_to_multiple
from ..sr_models.recipe import TSD_SR
from ..sr_models.sr_model import Result
from ..sr_models.step import Network
from ..sr_models.tiled_step import Canvas, step_tiles
from ..sr_models.tiling import Tile, plan
from . import host, host_vae

Conditioning = list[tuple[Tensor, dict[str, Any]]]
LATENT_FORMAT = "latent_format"
LATENT_CHANNELS, VAE_FACTOR = 16, 8
TIMESTEPS = 1000  # of a timestep for sigma 1
MOST_TILES = 16


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
    warning = _check_base(model, weights.name)
    targets = _transformer_targets(model, weights.transformer)
    shapes = {module: shape for module, (_, shape) in targets.items()}
    tsd_sr.require_fit(weights.transformer, shapes, weights.name, f"the connected {_title(model)}")
    patched = model.clone()
    _patch(patched, weights.transformer, {module: key for module, (key, _) in targets.items()}, strength)
    patched.add_object_patch(LATENT_FORMAT, TSDLatent())
    return patched, warning


def apply_vae_lora(vae: VAE, weights: TSDWeights, strength: float) -> VAE:
    """A VAE with TSD-SR's LoRA on its encoder. The given VAE stays as it was.

    Raises UserError where the LoRA does not fit it.
    """
    state = vae.first_stage_model.state_dict()
    keys = {module: f"{tsd_sr.original_vae_name(module)}.weight" for module in weights.vae}
    shapes = {module: tuple(state[key].shape) for module, key in keys.items() if key in state}
    tsd_sr.require_fit(weights.vae, shapes, weights.name, "the connected VAE")
    patched = copy.copy(vae)
    patched.patcher = vae.patcher.clone()
    _patch(patched.patcher, weights.vae, keys, strength)
    return patched


def _patch(patcher: ModelPatcher, update: Update, keys: dict[str, Any], strength: float) -> None:
    """Let the host apply an update; `keys` are the host's names for the modules' weights."""
    patches = comfy.lora.load_lora(low_rank.to_tensors(update), {module: keys[module] for module in update})
    patched = patcher.add_patches(patches, strength)
    left_out = [module for module in update if keys[module] not in patched]
    if left_out:
        raise UserError(f"ComfyUI did not take the LoRA's {shortened(left_out)}: update ComfyUI.")


def _transformer_targets(model: ModelPatcher, update: Update) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """The host's key and the weight's shape for each diffusers module of the model.

    A key is a name, or a name with a range of rows (dimension, start, length) and a function on the change.
    """
    state = model.model.state_dict()
    targets = {}
    for name, key in comfy.lora.model_lora_keys_unet(model.model, {}).items():
        module = name.removeprefix(tsd_sr.TRANSFORMER_PREFIX)
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


def _check_base(model: ModelPatcher, name: str) -> str:
    """Refuse what is no SD3; the warning for what is near it."""
    if not isinstance(model.model, model_base.SD3):
        raise UserError(
            f"{name} is a TSD-SR LoRA for {SD3_MEDIUM}, but the connected MODEL is {_title(model)}: "
            f"connect a checkpoint of {SD3_MEDIUM}."
        )
    config = model.model.model_config.unet_config
    if not config.get("qk_norm"):
        return ""
    if not config.get("x_block_self_attn_layers"):
        raise UserError(
            f"{name} is a TSD-SR LoRA for {SD3_MEDIUM}, but the connected MODEL is Stable Diffusion 3.5 large: "
            f"connect a checkpoint of {SD3_MEDIUM}."
        )
    return tsd_sr.SD35_WARNING


def _title(model: ModelPatcher) -> str:
    if isinstance(model.model, model_base.SD3):
        return SD35_MEDIUM if model.model.model_config.unet_config.get("qk_norm") else "Stable Diffusion 3"
    return type(model.model.model_config).__name__


def require_tsd(model: ModelPatcher) -> None:
    """Raise UserError unless the MODEL carries TSD-SR's latents, which comes with its LoRA."""
    if not isinstance(model.get_model_object(LATENT_FORMAT), TSDLatent):
        raise UserError("The connected MODEL has no TSD-SR LoRA: connect it through Apply One-Step SR LoRA.")


# Denoiser and codec


def as_network(guider: CFGGuider, device: torch.device, arguments: dict[str, Any]) -> Network:
    """The guided model inside a sampler, on tiles: v = (x - denoised) / sigma."""

    def network(latent: Tensor, condition: Tensor, timestep: Tensor) -> Tensor:
        x, sigma = latent.to(device), timestep.to(device) / TIMESTEPS
        v = (x - guider(x, sigma, **arguments)) / sigma.view(-1, 1, 1, 1)
        return v.to(latent.device, torch.float32)

    return network


class GuidedDenoiser:
    """A MODEL and its CONDITIONING as the core's denoiser: the host loads, patches and runs the model.

    The work runs inside one of the host's samplings, so that hooks, wrappers and patches of other packs hold,
    and the host makes room for one evaluation, not for one on the whole canvas.
    """

    def __init__(self, model: ModelPatcher, conditioning: Conditioning):
        self.model, self.conditioning = model, conditioning

    def run(self, work: Callable[[Network], Result], shape: tuple[int, ...]) -> Result:
        guider = CFGGuider(self.model)
        guider.inner_set_conds({"positive": self.conditioning})
        sampler, nothing = _WorkSampler(work), torch.zeros(shape)
        guider.sample(nothing, nothing, sampler, torch.tensor([1.0, 0.0]), disable_pbar=True, seed=0)
        return sampler.result

    def tiles_at_once(self, shape: tuple[int, ...]) -> int:
        """As many as the host reckons to fit beside the model, within what still makes it faster."""
        one = self.model.model.memory_required(list(shape))
        beside = model_management.get_total_memory(self.model.load_device) - self.model.model_size()
        if model_management.is_device_cpu(self.model.load_device):
            return 1
        return int(min(MOST_TILES, max(1, 0.8 * beside // one)))

    @property
    def dtype(self) -> torch.dtype:
        return self.model.model.manual_cast_dtype or self.model.model.get_dtype()

    def in_float32(self) -> GuidedDenoiser:
        exact = self.model.clone()
        exact.set_model_compute_dtype(torch.float32)
        return GuidedDenoiser(exact, self.conditioning)


class _WorkSampler(Sampler):
    result: Any

    def __init__(self, work: Callable[[Network], Any]):
        self.work = work

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> Tensor:
        self.result = self.work(as_network(model_wrap, noise.device, extra_args))
        return noise


class VAECodec:
    """A VAE as the core's codec, in TSD-SR's latents."""

    factor, latent_channels, is_local = VAE_FACTOR, LATENT_CHANNELS, False

    def __init__(self, vae: VAE):
        self.vae, self.latent_format = vae, TSDLatent()

    def encode(self, image: Tensor) -> Tensor:
        latent = host_vae.encode(self.vae, image.clamp(0, 1).movedim(1, -1), progress=host.stop_if_cancelled)
        return self.latent_format.process_in(latent).to(image.device, torch.float32)

    def decode(self, latent: Tensor) -> Tensor:
        image = host_vae.decode(self.vae, self.latent_format.process_out(latent), progress=host.stop_if_cancelled)
        return image.movedim(-1, 1).to(latent.device, torch.float32)

    def preview(self, latent: Tensor) -> Tensor:
        """Through the host's own factors from latents to colours."""
        factors = torch.tensor(self.latent_format.latent_rgb_factors, device=latent.device)
        bias = torch.tensor(self.latent_format.latent_rgb_factors_bias, device=latent.device).view(1, 3, 1, 1)
        return ((torch.einsum("bchw,cr->brhw", latent, factors) + bias) / 2 + 0.5).clamp(0, 1)


def require_sd3_vae(vae: VAE) -> None:
    """Raise UserError unless the VAE has SD3's latents and modules."""
    channels, factor = vae.latent_channels, vae.downscale_ratio
    if (channels, factor, vae.latent_dim) != (LATENT_CHANNELS, VAE_FACTOR, 2) or not host_vae.supports(vae):
        raise UserError(
            f"TSD-SR needs Stable Diffusion 3's VAE ({LATENT_CHANNELS} channels), and the connected one is a "
            f"{type(vae.first_stage_model).__name__} with {channels} channels: connect the VAE of the {SD3_MEDIUM} "
            "checkpoint."
        )


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

        network, canvas = as_network(model_wrap, noise.device, extra_args), Canvas(latent, latent, latent)
        if step_tiles(TSD_SR.step, network, canvas, list(tiles), result, batch=self.batch, done=show):
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
