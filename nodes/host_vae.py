"""ComfyUI's VAE, encoding and decoding within a memory budget and without seams."""

from __future__ import annotations

from collections.abc import Callable

from comfy import model_management
from comfy.sd import VAE
from torch import Tensor

from ..sr_models.codecs import seamless
from ..sr_models.core.memory import SHARE, SMALLEST_BUDGET, within_budget
from ..sr_models.errors import UserError

Progress = Callable[[int, int], object]


def supports(vae: VAE) -> bool:
    """Whether the VAE is one of those that can run seamlessly."""
    return vae.latent_dim == 2 and seamless.supports(vae.first_stage_model)


def encode(vae: VAE, image: Tensor, budget: int = 0, progress: Progress | None = None) -> Tensor:
    """Pictures (B, H, W, C) in [0, 1] -> the VAE's latents (B, c, H/8, W/8), as VAE Encode gives them.

    budget: bytes on the VAE's device; 0 takes what the host has free. Sides are cut to multiples of 8, as the
    host's own node does. Raises UserError for a VAE of another kind.
    """
    _require_support(vae, "VAE Encode (Tiled)")
    pixels = vae.process_input(vae.vae_encode_crop_pixels(image)[..., :3].movedim(-1, 1))
    needed = vae.memory_used_encode(pixels.shape, vae.vae_dtype)
    return _within_memory(vae, seamless.encode, pixels.float(), needed, budget, progress).to(vae.output_device)


def decode(vae: VAE, latent: Tensor, budget: int = 0, progress: Progress | None = None) -> Tensor:
    """Latents (B, c, h, w) -> pictures (B, 8 h, 8 w, 3) in [0, 1], as VAE Decode gives them; budget as above."""
    _require_support(vae, "VAE Decode (Tiled)")
    needed = vae.memory_used_decode(latent.shape, vae.vae_dtype)
    image = _within_memory(vae, seamless.decode, latent.float(), needed, budget, progress)
    return vae.process_output(image).to(vae.output_device).movedim(1, -1)


def _within_memory(
    vae: VAE, function: Callable[..., Tensor], canvas: Tensor, needed: float, budget: int, progress: Progress | None
) -> Tensor:
    model_management.load_models_gpu([vae.patcher], memory_required=min(needed, budget) if budget else needed)
    free = int(SHARE * model_management.get_free_memory(vae.device))

    def run(budget: int) -> Tensor:
        place = {"device": vae.device, "dtype": vae.vae_dtype}
        return function(vae.first_stage_model, canvas.to("cpu"), budget=budget, progress=progress, **place)

    return within_budget(run, budget or max(free, SMALLEST_BUDGET))


def _require_support(vae: VAE, stock: str) -> None:
    if not supports(vae):
        raise UserError(
            f"The connected VAE ({type(vae.first_stage_model).__name__}) cannot run seamlessly, only those of Stable "
            f"Diffusion 1.5, SDXL, SD3 and Flux can: use ComfyUI's {stock} for it."
        )
