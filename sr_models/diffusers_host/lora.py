"""Open a one-step LoRA with diffusers: the LoRA is merged into the networks of a Stable Diffusion."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from ..checkpoints.low_rank import Adapter
from ..checkpoints.prompt_embeddings import PromptEmbeddings, read_embeddings
from ..core.model import Conditioner, SRModel
from ..core.recipe import Recipe
from ..errors import UserError
from ..families.family import OneStepLora, OpenedModel, guided, on_base
from ..families.registry import read_lora
from ..families.tagger import read_tagger
from . import sd3, unet
from .codec import LatentCodec
from .denoiser import PromptedDenoiser
from .image_attention import ControlledDenoiser, ControlledUNet, add_image_attentions, open_control
from .merge import ByPicture, MergedAdapter, PictureAdapter, replace_weights
from .offload import Placed, Placement
from .packages import require_diffusers
from .passes import LoraPasses, PassStrength
from .tagging import TaggedPrompt, require_tagger
from .unet_checkpoint import is_checkpoint, require_vocabulary
from .unet_files import is_unet

TARGETS = {"transformer": "the base's transformer", "unet": "the base's U-Net"}
VAE_TARGET = "the base's VAE"


def open_lora(
    base: Path,
    lora: Path | OneStepLora,
    *,
    embeddings: Path | None = None,
    prompt: str | None = None,
    recipe: str | None = None,
    dtype: torch.dtype = torch.float16,
    device: torch.device | None = None,
    offload: bool = False,
    budget: int | None = None,
    spill: Path | None = None,
) -> OpenedModel:
    """Open a Stable Diffusion with a one-step LoRA as an SR model.

    Args:
        base: a diffusers folder (`transformer/` or `unet/`, `vae/`, ...), or a single-file checkpoint of Stable
            Diffusion 3 or 2.1.
        lora: one of the LoRA's files or its folder, as in `read_lora`, or the result of `read_lora`, for example at
            other strengths. Strengths can also be changed later, by the opened model's `adapters`.
        embeddings: the encoded prompt, as in `read_embeddings`; None uses the embeddings stored with the LoRA. If there
            are none, or if a prompt is given, the base's text encoders encode the prompt and are then released.
        prompt: None uses the recipe's prompt.
        recipe: one of the family's recipes; None uses the LoRA's.
        dtype: precision of the weights and the computation.
        device: the device to compute on; None means the CPU.
        offload: keep the network and the VAE on the CPU while they are not in use.
        budget, spill: the VAE's memory budget, and the folder for what exceeds it, as in `AutoencoderCodec`.

    Raises:
        UserError: if diffusers is missing or incompatible, or if files are missing, broken, or do not belong together.
    """
    require_diffusers()
    weights = read_lora(lora) if isinstance(lora, Path) else lora
    placement = Placement(device or torch.device("cpu"), offload)
    chosen = weights.family.recipe(recipe or weights.recipe)
    if is_unet(base) != (weights.base.network == "unet"):  # before text encoders, which may be missing
        weights.require_base((unet if is_unet(base) else sd3).open_base(base, dtype).kind, "the base")
    known = _known_embeddings(base, weights, embeddings, prompt)
    require_tagger(weights)
    if (weights.tagger or weights.captions) and is_checkpoint(base):  # before the first picture
        require_vocabulary(base, "tags or captions")
    conditioner, prompted = _conditioners(base, weights, chosen, prompt, known, placement, dtype)
    opened = (unet if is_unet(base) else sd3).open_base(base, dtype)
    warnings = weights.require_base(opened.kind, "the base")
    replace_weights(opened.network, weights.replaced, weights.sentence, whole=not weights.network)
    replace_weights(opened.vae, weights.replaced_vae, weights.sentence, whole=True)
    predictors = [] if weights.predictor is None else [copy.deepcopy(weights.predictor).to(dtype)]
    chosen = on_base(chosen, opened.process, *(Placed(module, placement) for module in predictors))
    if weights.image_attentions:
        add_image_attentions(opened.network, weights.image_attentions, weights.sentence)
    network, kind = opened.network, PromptedDenoiser
    if weights.control:
        network, kind = ControlledUNet(network, open_control(network, weights)), ControlledDenoiser
    denoiser = partial(kind, call=opened.call, placement=placement)
    codec = LatentCodec(opened.vae, placement, float(opened.vae.config.scaling_factor), budget, spill)
    look_again = conditioner.look_again if isinstance(conditioner, TaggedPrompt) else None
    model = SRModel(chosen, denoiser(network), codec, conditioner, look_again=look_again, prompted=prompted)
    target, modules = TARGETS[opened.kind.network], (network, opened.vae, *predictors)
    if weights.modulator is not None:
        adapters = (
            *_merged(PictureAdapter, network, weights.network, weights, target),
            *_merged(PictureAdapter, opened.vae, weights.vae, weights, VAE_TARGET),
        )
        model = replace(model, by_picture=ByPicture(weights, weights.modulator, adapters, placement, model))
        return OpenedModel(weights.family, model, (*modules, weights.modulator), offload, warnings, adapters)
    passes = LoraPasses(network, weights, chosen.step, target, denoiser)
    in_vae = _merged(MergedAdapter, opened.vae, weights.vae, weights, VAE_TARGET)
    adapters = (*(PassStrength(passes, adapter.name) for adapter in weights.network), *in_vae)
    return OpenedModel(weights.family, replace(model, passes=passes), modules, offload, warnings, adapters)


Merged = TypeVar("Merged", MergedAdapter, PictureAdapter)


def _merged(
    kind: type[Merged], network: nn.Module, adapters: Iterable[Adapter], lora: OneStepLora, target: str
) -> list[Merged]:
    return [kind(network, adapter, lora.sentence, target, str(lora.base)) for adapter in adapters]


def _known_embeddings(
    base: Path, lora: OneStepLora, embeddings: Path | None, prompt: str | None
) -> PromptEmbeddings | None:
    """The encoded prompt, if it is available without text encoders; else None."""
    if embeddings is None:
        return lora.embeddings if prompt is None else None
    if is_unet(base):
        raise UserError(f"{base.name} encodes the prompt with its own text encoders: remove --embeddings.")
    return read_embeddings(embeddings)


def _conditioners(
    base: Path,
    lora: OneStepLora,
    recipe: Recipe,
    prompt: str | None,
    known: PromptEmbeddings | None,
    placement: Placement,
    dtype: torch.dtype,
) -> tuple[Conditioner, Callable[[str], Conditioner] | None]:
    """The model's conditioner, and those for other prompts if the LoRA is for pictures with captions. Text encoders are
    opened only for these, or if there is no encoded prompt."""
    text = lora.family.prompt(recipe, prompt)
    usual = None if known is None else lora.family.conditioner(lambda _: known, text)
    if usual is not None and not lora.captions:
        return usual, None
    open_encoders = (unet if is_unet(base) else sd3).open_text_encoders
    # Encoders that stay open are not in use most of the time.
    device = torch.device("cpu") if lora.captions and placement.offload else placement.device
    encode = guided(open_encoders(base, device=device, dtype=dtype), recipe)
    tagger = None if lora.tagger is None else read_tagger(lora.tagger, dtype)

    def prompted(text: str) -> Conditioner:
        if tagger is not None:
            return TaggedPrompt(lora.family, encode, tagger, text, placement)
        return lora.family.conditioner(encode, text)

    return usual or prompted(text), prompted if lora.captions else None
