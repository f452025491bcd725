"""TSD-SR without a host: Stable Diffusion 3 from diffusers, with the LoRA merged into its weights.

The base is a diffusers folder, or a single checkpoint file in Stability's own layout.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checkpoints import prompt_embeddings
from ..checkpoints.prompt_embeddings import PromptEmbeddings
from ..core.model import SRModel
from ..errors import UserError
from ..families import one_step_lora
from ..families.one_step_lora import SD35_MEDIUM, TSDWeights, choose_recipe
from .codec import LatentCodec
from .denoiser import PromptedDenoiser
from .merge import merge_update
from .offload import Placement
from .opened import StandaloneModel
from .packages import require_diffusers
from .sd3_files import open_networks
from .sd3_prompts import encode_prompt

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel

SCALING = 1.5305


def load_sd3(
    base: Path,
    lora: Path,
    *,
    embeddings: Path | None = None,
    prompt: str | None = None,
    recipe: str | None = None,
    dtype: torch.dtype = torch.float16,
    device: torch.device | None = None,
    offload: bool = False,
    budget: int | None = None,
) -> StandaloneModel:
    """Stable Diffusion 3 with TSD-SR's LoRA as an SR model.

    Args:
        base: a diffusers folder (`transformer/`, `vae/`, ...), or a single-file checkpoint.
        lora: as `one_step_lora.read` takes it.
        embeddings: as `read_embeddings` takes it; None takes the ones that come with the LoRA. Where there are
            none, or a prompt is given, the folder's text encoders encode the prompt once and are let go.
        prompt: None is the published one.
        recipe: `tsd-sr` or `tsd-sr-mse`, in place of what the LoRA's name stands for.
        dtype: of the weights and the computation.
        offload: keep transformer and VAE on the CPU while the other one works.
        budget: of the VAE, as `AutoencoderCodec` takes it.

    Raises:
        UserError: where diffusers is missing or does not suit the rest, and for files that are missing or broken,
            or that do not belong together.
    """
    require_diffusers()
    weights = one_step_lora.read(lora)
    if weights.unet:
        raise UserError(f"{weights.name} is a LoRA for {weights.base}: give a diffusers folder of it as the base.")
    chosen, placement = choose_recipe(recipe or weights.recipe), Placement(device or torch.device("cpu"), offload)
    condition = _published_embeddings(weights, embeddings, prompt)
    if condition is None:
        condition = encode_prompt(base, prompt or chosen.prompt, device=placement.device, dtype=dtype)
    transformer, vae = open_networks(base, dtype)
    warning = _check_base(transformer, weights)
    merge_update(transformer, weights.transformer, weights.name, "the base's transformer", weights.base)
    merge_update(vae, weights.vae, weights.name, "the base's VAE", weights.base)
    denoiser = PromptedDenoiser(transformer, call_transformer, condition, placement)
    model = SRModel(chosen, denoiser, LatentCodec(vae, placement, SCALING, budget))
    return StandaloneModel(model, (transformer, vae), warning)


def call_transformer(network: Any, z_t: Tensor, timestep: Tensor, prompt: Tensor, pooled: Tensor) -> Tensor:
    """Stable Diffusion 3's velocity for latents (B, 16, h, w) at timesteps (B,), in the prompt's precision."""
    return network(
        hidden_states=z_t.to(prompt.dtype),
        timestep=timestep,
        encoder_hidden_states=prompt,
        pooled_projections=pooled,
        return_dict=False,
    )[0]


def _check_base(transformer: SD3Transformer2DModel, weights: TSDWeights) -> str:
    if not transformer.config.get("qk_norm"):
        return ""
    if not transformer.config.get("dual_attention_layers"):
        raise UserError(
            f"{weights.name} is a TSD-SR LoRA for {weights.base}, but the base is Stable Diffusion 3.5 large: "
            f"name a checkpoint of {weights.base}."
        )
    return "" if weights.base == SD35_MEDIUM else one_step_lora.SD35_WARNING


def _published_embeddings(weights: TSDWeights, embeddings: Path | None, prompt: str | None) -> PromptEmbeddings | None:
    if embeddings is not None:
        return prompt_embeddings.read_embeddings(embeddings)
    return weights.embeddings if prompt is None else None
