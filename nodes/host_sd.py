"""Adapters from ComfyUI's MODEL, VAE and CONDITIONING of any Stable Diffusion to the core's denoiser and codec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from comfy import latent_formats, model_management
from comfy.controlnet import ControlNet
from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider, Sampler
from comfy.sd import VAE
from torch import Tensor

from ..sr_models.codecs import seamless
from ..sr_models.core.model import Guided, Result, Stage
from ..sr_models.core.process import Level
from ..sr_models.core.step import Network
from ..sr_models.errors import UserError
from ..sr_models.families.family import LoraFamily, OneStepLora
from . import host_vae

Conditioning = list[tuple[Tensor, dict[str, Any]]]
LevelAt = Callable[[float], Level]
LATENT_FORMAT = "latent_format"  # ComfyUI's name for it
VAE_FACTOR = 8
MOST_TILES = 16
CARRIED = "onestep_sr_lora"  # the key of this pack's attachment on a MODEL


@dataclass(frozen=True)
class Carried:
    """The one-step LoRA that was applied to a MODEL, at `strength` times the strengths of its adapters, and its
    ControlNet."""

    lora: OneStepLora
    strength: float
    control: ControlNet | None = None

    @property
    def family(self) -> LoraFamily:
        return self.lora.family


def carried_by(model: ModelPatcher) -> Carried | None:
    return model.get_attachment(CARRIED)


def compute_dtype(model: ModelPatcher) -> torch.dtype:
    """The precision in which a MODEL computes."""
    # Not the module's attribute: it may be loaded for another clone of this MODEL, or not at all yet.
    return model.get_model_object("manual_cast_dtype") or model.model.get_dtype()


def require_vae(vae: VAE, channels: int, base: str) -> None:
    """Raise UserError unless the VAE has the base's latent channels, is not tiny and can run without seams."""
    found, factor = vae.latent_channels, vae.downscale_ratio
    fits = (found, factor, vae.latent_dim) == (channels, VAE_FACTOR, 2)
    if not fits or seamless.is_tiny(vae.first_stage_model) or not host_vae.supports(vae):
        raise UserError(
            f"The connected VAE ({type(vae.first_stage_model).__name__}, {found} channels) does not belong to {base} "
            f"({channels} channels): connect the VAE of the same checkpoint as the MODEL."
        )


def require_prompt(conditioning: Conditioning, width: int, base: str) -> None:
    """Raise UserError unless the CONDITIONING was encoded for the base."""
    found = {prompt.shape[-1] for prompt, _ in conditioning}
    if found != {width}:
        raise UserError(
            f"The connected CONDITIONING has width {min(found)}, but {base} needs {width}: set One-Step SR Prompt to "
            "'from text' and connect the CLIP of its checkpoint."
        )


# Denoiser and codec


class GuidedDenoiser:
    """A MODEL as the core's denoiser: ComfyUI loads, patches and runs the model. Its condition is a CONDITIONING, or
    two as Guided.

    The work runs inside a ComfyUI sampling, so that hooks, wrappers and patches of other packs apply, and ComfyUI
    frees memory for one pass of the model rather than for one on the whole canvas. `level_at` gives the base's
    process at a timestep, and `start` is the level at which the sampling starts.
    """

    def __init__(self, model: ModelPatcher, level_at: LevelAt, start: Level, control: ControlNet | None = None):
        self.model, self.level_at, self.start, self.control = model, level_at, start, control

    def run(
        self, work: Callable[[Network], Result], shape: tuple[int, ...], condition: Conditioning | Guided | None = None
    ) -> Result:
        if condition is None:
            raise ValueError("This denoiser needs a CONDITIONING: pass the result of the model's conditioner.")
        guider = CFGGuider(self.model)
        if isinstance(condition, Guided):
            guider.set_conds(condition.positive, condition.negative)
            guider.set_cfg(condition.scale)
        else:
            guider.inner_set_conds({"positive": condition})
        sampler, nothing = WorkSampler(work, self.level_at, self.control), torch.zeros(shape)
        sigmas = torch.tensor([self.start.sigma / unit_of(self.start), 0.0])
        guider.sample(nothing, nothing, sampler, sigmas, disable_pbar=True, seed=0)
        return sampler.result

    def tiles_at_once(self, shape: tuple[int, ...]) -> int:
        """As many as fit into memory beside the model by ComfyUI's estimate, up to MOST_TILES."""
        one = self.memory(shape)
        beside = model_management.get_total_memory(self.model.load_device) - self.model.model_size()
        if model_management.is_device_cpu(self.model.load_device):
            return 1
        return min(MOST_TILES, max(1, int(0.8 * beside) // one))

    def memory(self, shape: tuple[int, ...]) -> int:
        return int(self.model.model.memory_required(list(shape)))

    @property
    def dtype(self) -> torch.dtype:
        return compute_dtype(self.model)

    def in_float32(self) -> GuidedDenoiser:
        exact = self.model.clone()
        exact.set_model_compute_dtype(torch.float32)
        return GuidedDenoiser(exact, self.level_at, self.start, self.control)


class WorkSampler(Sampler):
    """Runs work(network) inside a ComfyUI sampling; `result` is what it returned."""

    result: Any

    def __init__(self, work: Callable[[Network], Any], level_at: LevelAt, control: ControlNet | None = None):
        self.work, self.level_at, self.control = work, level_at, control

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> Tensor:
        self.result = self.work(as_network(model_wrap, noise.device, extra_args, self.level_at, self.control))
        return noise


def unit_of(level: Level) -> float:
    """ComfyUI's scale of z_t = alpha x_0 + sigma n and of its sigma: it divides both by alpha, except in flow
    matching."""
    return 1.0 if level.prediction == "flow" else level.alpha


def as_network(
    guider: CFGGuider,
    device: torch.device,
    arguments: dict[str, Any],
    level_at: LevelAt,
    control: ControlNet | None = None,
) -> Network:
    """A guided model inside a sampler as the core's network, on tiles. ComfyUI gives x_0, from which the raw prediction
    is computed. `control` is the ControlNet in the guider's condition, which sees the tiles of the enlarged picture."""

    def network(latent: Tensor, lr: Tensor, timestep: Tensor) -> Tensor:
        level, z_t = level_at(float(timestep[0])), latent.to(device)
        unit = unit_of(level)
        sigma = torch.full((len(z_t),), level.sigma / unit, device=device)
        if control is not None:
            control.cond_hint_original, control.cond_hint = (lr / 2 + 0.5).clamp(0, 1), None
        x_0 = guider(z_t / unit, sigma, **arguments)
        return level.output(x_0, z_t).to(latent.device, torch.float32)

    return network


class VAECodec:
    """A VAE as the core's codec; latents have the given format."""

    factor, is_local = VAE_FACTOR, False

    def __init__(self, vae: VAE, latent_format: latent_formats.LatentFormat):
        self.vae, self.latent_format, self.latent_channels = vae, latent_format, latent_format.latent_channels

    def memory(self, height: int, width: int) -> int:
        return 0

    def encode(self, image: Tensor, stage: Stage | None = None) -> Tensor:
        latent = host_vae.encode(self.vae, image.clamp(0, 1).movedim(1, -1), progress=stage)
        return self.latent_format.process_in(latent).to(image.device, torch.float32)

    def decode(self, latent: Tensor, stage: Stage | None = None) -> Tensor:
        image = host_vae.decode(self.vae, self.latent_format.process_out(latent), progress=stage)
        return image.movedim(-1, 1).to(latent.device, torch.float32)

    def preview(self, latent: Tensor) -> Tensor:
        """Uses ComfyUI's linear factors from latents to colours."""
        factors = torch.tensor(self.latent_format.latent_rgb_factors, device=latent.device)
        constants = self.latent_format.latent_rgb_factors_bias or [0.0, 0.0, 0.0]
        bias = torch.tensor(constants, device=latent.device).view(1, 3, 1, 1)
        return ((torch.einsum("bchw,cr->brhw", latent, factors) + bias) / 2 + 0.5).clamp(0, 1)
