"""A one-step LoRA on a Stable Diffusion without a host: merged into diffusers' networks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from ..checkpoints.low_rank import Adapter
from ..checkpoints.prompt_embeddings import PromptEmbeddings, read_embeddings
from ..core.model import Conditioner, SRModel
from ..core.recipe import Recipe
from ..errors import UserError
from ..families.family import Encode, OneStepLora, OpenedModel, on_base
from ..families.registry import read_lora
from . import sd3, unet
from .codec import LatentCodec
from .denoiser import PromptedDenoiser
from .merge import MergedAdapter, replace_weights
from .offload import Placement
from .packages import require_diffusers
from .unet_files import is_unet

TARGETS = {"transformer": "the base's transformer", "unet": "the base's U-Net"}
VAE_TARGET = "the base's VAE"


def open_lora(
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
) -> OpenedModel:
    """A Stable Diffusion with a one-step LoRA as an SR model.

    Args:
        base: a diffusers folder (`transformer/` or `unet/`, `vae/`, ...), or a single-file checkpoint of Stable
            Diffusion 3.
        lora: as `read_lora` takes it.
        embeddings: as `read_embeddings` takes it; None takes the ones that come with the LoRA. Where there are none,
            or a prompt is given, the folder's text encoders encode the prompt and are released.
        prompt: None takes the recipe's.
        recipe: one of the family's, in place of the one that belongs to the LoRA's name.
        dtype: of the weights and the computation.
        offload: keep the network and the VAE on the CPU while the other one works.
        budget: of the VAE, as `AutoencoderCodec` takes it.

    Raises:
        UserError: where diffusers is missing or does not suit the rest, and for files that are missing or broken,
            or that do not belong together.
    """
    require_diffusers()
    weights, placement = read_lora(lora), Placement(device or torch.device("cpu"), offload)
    chosen = weights.family.recipe(recipe or weights.recipe)
    known = _known_embeddings(base, weights, embeddings, prompt)
    conditioner = _conditioner(base, weights, chosen, prompt, known, placement.device, dtype)
    opened = (unet if is_unet(base) else sd3).open_base(base, dtype)
    warnings = weights.require_base(opened.kind, "the base")
    replace_weights(opened.network, weights.replaced, weights.sentence)
    adapters = (
        *_merged(opened.network, weights, weights.network, TARGETS[opened.kind.network]),
        *_merged(opened.vae, weights, weights.vae, VAE_TARGET),
    )
    denoiser = PromptedDenoiser(opened.network, opened.call, placement)
    codec = LatentCodec(opened.vae, placement, float(opened.vae.config.scaling_factor), budget)
    model = SRModel(on_base(chosen, opened.process), denoiser, codec, conditioner)
    return OpenedModel(weights.family, model, (opened.network, opened.vae), offload, warnings, adapters)


def _merged(
    network: nn.Module, lora: OneStepLora, adapters: tuple[Adapter, ...], target: str
) -> Iterator[MergedAdapter]:
    for adapter in adapters:
        yield MergedAdapter(network, adapter, lora.sentence, target, str(lora.base))


def _known_embeddings(
    base: Path, lora: OneStepLora, embeddings: Path | None, prompt: str | None
) -> PromptEmbeddings | None:
    """The prompt where it is encoded already."""
    if embeddings is None:
        return lora.embeddings if prompt is None else None
    if is_unet(base):
        raise UserError(f"{base.name} has text encoders of its own for the prompt: leave --embeddings out.")
    return read_embeddings(embeddings)


def _conditioner(
    base: Path,
    lora: OneStepLora,
    recipe: Recipe,
    prompt: str | None,
    known: PromptEmbeddings | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Conditioner:
    """From prompts to PromptEmbeddings; text encoders are opened only where the prompt is not encoded already."""
    text = lora.family.prompt(recipe, prompt)
    if known is not None:
        return lora.family.conditioner(lambda _: known, text)
    encode: Encode = (unet if is_unet(base) else sd3).open_text_encoders(base, device=device, dtype=dtype)
    return lora.family.conditioner(encode, text)
