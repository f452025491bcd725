"""Encode and decode with ComfyUI's VAE within a memory budget and without seams."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from comfy import model_management
from comfy.sd import VAE
from torch import Tensor

from ..sr_models.canvas.wrap import Wrap
from ..sr_models.codecs import seamless
from ..sr_models.core.memory import SHARE, SMALLEST_BUDGET, container_memory, within_budget
from ..sr_models.errors import UserError
from . import host

IMAGES, VIDEO = 2, 3  # dimensions of a latent

Progress = Callable[[int, int], object]


def supports(vae: VAE) -> bool:
    """Whether the VAE can run without seams."""
    return vae.latent_dim in (IMAGES, VIDEO) and seamless.supports(vae.first_stage_model)


def encode(vae: VAE, image: Tensor, budget: int = 0, progress: Progress | None = None, wrap: Wrap = "none") -> Tensor:
    """Images (B, H, W, C) in [0, 1] -> the VAE's latents (B, c, H/8, W/8), the same as from VAE Encode.

    A video VAE takes the images as the frames of one video: (1, c, T, H/8, W/8). `budget`: bytes on the VAE's device; 0
    uses all free memory. `wrap`: as in `seamless.wrapped`. Sides are cropped to multiples of 8 (or up to 32), as in VAE
    Encode. Raises UserError for a VAE that is not supported.
    """
    _require_support(vae, "VAE Encode (Tiled)")
    pixels = vae.vae_encode_crop_pixels(image)[..., : vae.output_channels].movedim(-1, 1)
    if vae.latent_dim == VIDEO and pixels.ndim == IMAGES + 2:
        pixels = pixels.movedim(1, 0).unsqueeze(0)
    pixels = vae.process_input(pixels)
    needed = _memory(vae, vae.memory_used_encode(pixels.shape, vae.vae_dtype), *pixels.shape[-2:])
    function = partial(seamless.wrapped, seamless.encode, wrap)
    return _within_memory(vae, function, pixels.float(), needed, budget, progress).to(vae.output_device)


def decode(vae: VAE, latent: Tensor, budget: int = 0, progress: Progress | None = None, wrap: Wrap = "none") -> Tensor:
    """Latents (B, c, h, w) -> images (B, 8 h, 8 w, 3) in [0, 1], as from VAE Decode; `budget` and `wrap` as in
    `encode`. Videos (B, c, T, h, w) -> all their frames, (B T', 8 h, 8 w, 3)."""
    _require_support(vae, "VAE Decode (Tiled)")
    latent = _of_dimensions(vae.latent_dim, latent)
    height, width = (side * vae.spacial_compression_decode() for side in latent.shape[-2:])
    needed = _memory(vae, vae.memory_used_decode(latent.shape, vae.vae_dtype), height, width)
    function = partial(seamless.wrapped, seamless.decode, wrap)
    image = _within_memory(vae, function, latent.float(), needed, budget, progress)
    return vae.process_output(image).to(vae.output_device).movedim(1, -1).flatten(0, -4)


def _of_dimensions(dimensions: int, latent: Tensor) -> Tensor:
    """As VAE Decode reads a latent: an image VAE takes the first frame of a video, to a video VAE an image is one."""
    if dimensions == IMAGES and latent.ndim > IMAGES + 2:
        return latent[:, :, 0]
    return latent.unsqueeze(2) if dimensions == VIDEO and latent.ndim < VIDEO + 2 else latent


def _memory(vae: VAE, untiled: float, height: int, width: int) -> int:
    """Bytes to free for a picture of this size: all that ComfyUI estimates, or what is enough without seams if less."""
    return int(min(untiled, seamless.workspace(vae.first_stage_model, height, width, vae.vae_dtype) / SHARE))


def _within_memory(
    vae: VAE, function: Callable[..., Tensor], canvas: Tensor, needed: int, budget: int, progress: Progress | None
) -> Tensor:
    model_management.load_models_gpu([vae.patcher], memory_required=min(needed, budget) if budget else needed)
    free = model_management.get_free_memory(vae.device)
    if model_management.is_device_cpu(vae.device):
        free = min(free, container_memory())  # ComfyUI asks the whole machine
    free = int(SHARE * free)

    def compute(budget: int) -> Tensor:
        place = {"device": vae.device, "dtype": vae.vae_dtype, "spill": host.temporary_folder()}
        return function(vae.first_stage_model, canvas.to("cpu"), budget=budget, progress=progress, **place)

    return within_budget(compute, budget or max(free, SMALLEST_BUDGET))


def _require_support(vae: VAE, stock: str) -> None:
    if not supports(vae):
        raise UserError(
            f"The connected VAE is not supported: {seamless.refusal(vae.first_stage_model)}. Use ComfyUI's {stock} for "
            f"it (supported are the VAEs of {seamless.SUPPORTED})."
        )
