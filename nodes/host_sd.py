"""ComfyUI's MODEL, VAE and CONDITIONING of any Stable Diffusion as the core's denoiser and codec."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import comfy.lora
import torch
from comfy import latent_formats, model_management, model_sampling
from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider, Sampler
from comfy.sd import VAE
from torch import Tensor

from ..sr_models.checkpoints import low_rank
from ..sr_models.checkpoints.lora_fit import require_fit
from ..sr_models.checkpoints.low_rank import Update
from ..sr_models.checkpoints.vae_names import original_vae_name
from ..sr_models.checkpoints.weights_file import shortened
from ..sr_models.core.model import Condition, Result
from ..sr_models.core.process import Level, Process, variance_preserving
from ..sr_models.core.step import Network
from ..sr_models.errors import UserError
from ..sr_models.families.one_step_lora import TSDWeights
from . import host, host_vae

Conditioning = list[tuple[Tensor, dict[str, Any]]]
LevelAt = Callable[[float], Level]
LATENT_FORMAT = "latent_format"  # the host's name for it
VAE_FACTOR = 8
MOST_TILES = 16


# LoRA


def apply_vae_lora(vae: VAE, weights: TSDWeights, strength: float) -> VAE:
    """A VAE with TSD-SR's LoRA on its encoder. The given VAE stays as it was.

    Raises UserError where the LoRA does not fit it.
    """
    state = vae.first_stage_model.state_dict()
    keys = {module: f"{original_vae_name(module)}.weight" for module in weights.vae}
    shapes = {module: tuple(state[key].shape) for module, key in keys.items() if key in state}
    require_fit(weights.vae, shapes, weights.name, "the connected VAE", weights.base)
    patched = copy.copy(vae)
    patched.patcher = vae.patcher.clone()
    patch(patched.patcher, weights.vae, keys, strength)
    return patched


def patch(patcher: ModelPatcher, update: Update, keys: dict[str, Any], strength: float) -> None:
    """Let the host apply an update; `keys` are the host's names for the modules' weights."""
    patches = comfy.lora.load_lora(low_rank.to_tensors(update), {module: keys[module] for module in update})
    patched = patcher.add_patches(patches, strength)
    left_out = [module for module in update if keys[module] not in patched]
    if left_out:
        raise UserError(f"ComfyUI did not take the LoRA's {shortened(left_out)}: update ComfyUI.")


def require_vae(vae: VAE, channels: int, base: str) -> None:
    """Raise UserError unless the VAE has the latents and modules of the base's."""
    found, factor = vae.latent_channels, vae.downscale_ratio
    if (found, factor, vae.latent_dim) != (channels, VAE_FACTOR, 2) or not host_vae.supports(vae):
        raise UserError(
            f"The VAE of {base} is needed ({channels} channels), and the connected one is a "
            f"{type(vae.first_stage_model).__name__} with {found} channels: connect the VAE of the {base} checkpoint."
        )


def require_prompt(conditioning: Conditioning, width: int, base: str) -> None:
    """Raise UserError unless the CONDITIONING was encoded for the base."""
    found = {prompt.shape[-1] for prompt, _ in conditioning}
    if found != {width}:
        raise UserError(
            f"The connected CONDITIONING is not of {base} (width {min(found)}, where {width} is needed): set "
            "One-Step SR Prompt to 'from text' and connect the CLIP of its checkpoint."
        )


# Denoiser and codec


class GuidedDenoiser:
    """A MODEL and its CONDITIONING as the core's denoiser: the host loads, patches and runs the model.

    The work runs inside one of the host's samplings, so that hooks, wrappers and patches of other packs hold,
    and the host makes room for one evaluation, not for one on the whole canvas. `level_at` gives the base's process
    at a timestep, and `sigma` is where the host's sampling begins.
    """

    def __init__(self, model: ModelPatcher, conditioning: Conditioning, level_at: LevelAt, sigma: float):
        self.model, self.conditioning, self.level_at, self.sigma = model, conditioning, level_at, sigma

    def run(self, work: Callable[[Network], Result], shape: tuple[int, ...], condition: Condition = None) -> Result:
        guider = CFGGuider(self.model)
        guider.inner_set_conds({"positive": self.conditioning})
        sampler, nothing = _WorkSampler(work, self.level_at), torch.zeros(shape)
        guider.sample(nothing, nothing, sampler, torch.tensor([self.sigma, 0.0]), disable_pbar=True, seed=0)
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
        return GuidedDenoiser(exact, self.conditioning, self.level_at, self.sigma)


class _WorkSampler(Sampler):
    result: Any

    def __init__(self, work: Callable[[Network], Any], level_at: LevelAt):
        self.work, self.level_at = work, level_at

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> Tensor:
        self.result = self.work(as_network(model_wrap, noise.device, extra_args, self.level_at))
        return noise


def process_of(model: ModelPatcher) -> Process:
    """The noise process of a MODEL with a U-Net, from the host's table of sigmas."""
    sampling = model.get_model_object("model_sampling")
    prediction = "v" if isinstance(sampling, model_sampling.V_PREDICTION) else "epsilon"
    return variance_preserving(prediction, 1 / (1 + sampling.sigmas.double().cpu() ** 2))


def as_network(guider: CFGGuider, device: torch.device, arguments: dict[str, Any], level_at: LevelAt) -> Network:
    """The guided model inside a sampler, on tiles, as the core's network: its raw prediction.

    The host answers with x_0, and counts noise in its own way: for z_t = alpha x_0 + sigma n it wants z_t / alpha and
    sigma / alpha, but in flow matching z_t and sigma as they are.
    """

    def network(latent: Tensor, lr: Tensor, timestep: Tensor) -> Tensor:
        level, z_t = level_at(float(timestep[0])), latent.to(device)
        unit = 1.0 if level.prediction == "flow" else level.alpha
        sigma = torch.full((len(z_t),), level.sigma / unit, device=device)
        x_0 = guider(z_t / unit, sigma, **arguments)
        return level.output(x_0, z_t).to(latent.device, torch.float32)

    return network


class VAECodec:
    """A VAE as the core's codec, in the latents of a format."""

    factor, is_local = VAE_FACTOR, False

    def __init__(self, vae: VAE, latent_format: latent_formats.LatentFormat):
        self.vae, self.latent_format, self.latent_channels = vae, latent_format, latent_format.latent_channels

    def encode(self, image: Tensor) -> Tensor:
        latent = host_vae.encode(self.vae, image.clamp(0, 1).movedim(1, -1), progress=host.stop_if_cancelled)
        return self.latent_format.process_in(latent).to(image.device, torch.float32)

    def decode(self, latent: Tensor) -> Tensor:
        image = host_vae.decode(self.vae, self.latent_format.process_out(latent), progress=host.stop_if_cancelled)
        return image.movedim(-1, 1).to(latent.device, torch.float32)

    def preview(self, latent: Tensor) -> Tensor:
        """Through the host's own factors from latents to colours."""
        factors = torch.tensor(self.latent_format.latent_rgb_factors, device=latent.device)
        constants = self.latent_format.latent_rgb_factors_bias or [0.0, 0.0, 0.0]
        bias = torch.tensor(constants, device=latent.device).view(1, 3, 1, 1)
        return ((torch.einsum("bchw,cr->brhw", latent, factors) + bias) / 2 + 0.5).clamp(0, 1)
