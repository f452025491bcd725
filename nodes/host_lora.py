"""Apply one-step LoRAs to ComfyUI's own MODEL and VAE: the code that all bases share.

The code for each base is in `host_sd3` and `host_unet`, which define the same functions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import comfy.lora
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor

from ..sr_models.checkpoints import low_rank
from ..sr_models.checkpoints.lora_fit import require_fit
from ..sr_models.checkpoints.low_rank import Adapter
from ..sr_models.checkpoints.prompt_embeddings import PromptEmbeddings
from ..sr_models.checkpoints.vae_names import diffusers_vae_name, diffusers_vae_parameter
from ..sr_models.checkpoints.weights_file import shortened
from ..sr_models.core.model import Conditioner, Guided, Pass, SRModel
from ..sr_models.core.process import Process
from ..sr_models.core.recipe import Recipe
from ..sr_models.core.step import Step
from ..sr_models.errors import UserError
from ..sr_models.families.family import OneStepLora, OpenedModel, Strengths, on_base, start_level
from . import host_image_attention, host_sd3, host_unet
from .host_prompts import pictures_of, row_of
from .host_sd import (
    CARRIED,
    LATENT_FORMAT,
    Carried,
    Conditioning,
    GuidedDenoiser,
    VAECodec,
    carried_by,
    compute_dtype,
    require_prompt,
    require_vae,
)

TARGET = "the connected MODEL"


def _base_module(model: ModelPatcher) -> Any:
    """The module with the functions for the MODEL's base; None if it is not a Stable Diffusion."""
    return next((base for base in (host_sd3, host_unet) if base.holds(model)), None)


def apply_lora(model: ModelPatcher, lora: OneStepLora, strength: float) -> tuple[ModelPatcher, tuple[str, ...]]:
    """A copy of the MODEL with the LoRA and the latent format of one-step LoRAs, and warnings. A LoRA that depends on
    the picture is only carried: `open_model` adds it for each picture.

    Raises UserError if the LoRA was made for another base, or does not fit the MODEL.
    """
    base = _base_module(model)
    if base is None:
        title = type(model.model.model_config).__name__
        raise UserError(f"{lora.sentence}, but {TARGET} is {title}: use {lora.base}.")
    _require_no_other(model, lora, "MODEL")
    warnings, patched = lora.require_base(base.base_of(model), TARGET), model.clone()
    _replace(patched, lora, lora.replaced, base.parameter_names(model), TARGET, whole=not lora.network)
    _add_adapters(patched, lora, _scales(lora, strength))
    if latent_format := base.latent_format():
        patched.add_object_patch(LATENT_FORMAT, latent_format)
    if lora.image_attentions:
        host_image_attention.add_image_attentions(patched, lora)
    patched.set_additional_models(CARRIED, _predictors(model, lora))
    control = host_image_attention.open_control(patched, lora)
    patched.set_attachments(CARRIED, Carried(lora, strength, control))
    return patched, warnings


def _require_no_other(patcher: ModelPatcher, lora: OneStepLora, kind: str) -> None:
    """Raises UserError if another method's LoRA was applied before. The same method's adds up."""
    carried = carried_by(patcher)
    if carried is not None and carried.family.name != lora.family.name:
        raise UserError(
            f"The connected {kind} already has the LoRA of {carried.family.title}, which cannot be combined with "
            f"{lora.family.title}: connect the checkpoint's own {kind}."
        )


def _predictors(model: ModelPatcher, lora: OneStepLora) -> list[ModelPatcher]:
    """The LoRA's predictor if it has one, in the MODEL's precision: ComfyUI loads it together with the MODEL."""
    if lora.predictor is None:
        return []
    predictor = copy.deepcopy(lora.predictor).to(compute_dtype(model))
    return [ModelPatcher(predictor, model.load_device, model.offload_device)]


def _scales(lora: OneStepLora, strength: float) -> Strengths:
    """Of the network's adapters in its first pass; 0 as long as they depend on the picture."""
    _, scales = lora.passes(lora.family.recipe(lora.recipe).step)[0]
    return {name: scale * (strength if lora.modulator is None else 0.0) for name, scale in scales.items()}


def _add_adapters(patcher: ModelPatcher, lora: OneStepLora, scales: Strengths) -> None:
    """Add the network's adapters to a MODEL at these scales. Raises UserError if one does not fit."""
    base = _base_module(patcher)
    for adapter in lora.network:
        targets = base.targets(patcher, adapter.update)
        shapes = {module: shape for module, (_, shape) in targets.items()}
        require_fit(adapter, shapes, lora.sentence, TARGET, str(lora.base))
        if scales[adapter.name]:
            _patch(patcher, adapter, {module: key for module, (key, _) in targets.items()}, scales[adapter.name])


def passes_of(model: ModelPatcher, recipe: Recipe) -> list[tuple[Step, ModelPatcher]]:
    """The passes of the recipe, whose step has the base's process, on the MODEL that carries the LoRA: each step with
    a MODEL, of which the first is the given one. ComfyUI changes the weights between two passes."""
    carried = require_carried(model)
    (first, applied), *others = carried.lora.passes(recipe.step)
    found: list[tuple[Step, ModelPatcher]] = [(first, model)]
    for step, scales in others:
        other = model.clone()
        change = {name: carried.strength * (scale - applied[name]) for name, scale in scales.items()}
        _add_adapters(other, carried.lora, change)
        found.append((step, other))
    return found


def require_carried(model: ModelPatcher) -> Carried:
    """The LoRA that the MODEL carries. Raises UserError if there is none."""
    carried = carried_by(model)
    if carried is None:
        raise UserError("The connected MODEL has no one-step LoRA: connect it through Apply One-Step SR LoRA.")
    return carried


def prompt_of(model: ModelPatcher) -> tuple[str, PromptEmbeddings | None]:
    """The prompt of the LoRA that the MODEL carries, as text, and encoded if the LoRA's files contain that."""
    carried = require_carried(model)
    return carried.family.recipe(carried.lora.recipe).prompt, carried.lora.embeddings


def negative_prompt_of(model: ModelPatcher | None) -> str:
    """The negative prompt of the LoRA that the MODEL carries; empty if there is none."""
    carried = None if model is None else carried_by(model)
    return "" if carried is None else carried.family.recipe(carried.lora.recipe).negative_prompt


def process_of(model: ModelPatcher) -> Process:
    """The noise process of a MODEL that carries a LoRA."""
    return _base_module(model).process_of(model)


def recipe_of(model: ModelPatcher, name: str = "") -> Recipe:
    """The recipe of this name on the MODEL, with the predictor of its LoRA; the LoRA's own recipe if its method does
    not have the name."""
    carried, predictors = require_carried(model), model.get_additional_models_with_key(CARRIED)
    recipe = carried.family.recipe(name if name in carried.family.recipes else carried.lora.recipe)
    return on_base(recipe, process_of(model), *(each.model for each in predictors))


def apply_vae_lora(vae: VAE, lora: OneStepLora, strength: float) -> VAE:
    """A copy of the VAE with the LoRA on its encoder, or that carries it, as in `apply_lora`. Raises UserError if the
    LoRA does not fit."""
    _require_no_other(vae.patcher, lora, "VAE")
    patched, state = copy.copy(vae), vae.first_stage_model.state_dict()
    patched.patcher = vae.patcher.clone()
    names = {diffusers_vae_parameter(key): key for key in state}
    _replace(patched.patcher, lora, lora.replaced_vae, names, "the connected VAE", whole=True)
    keys = {diffusers_vae_name(key.removesuffix(".weight")): key for key in state if key.endswith(".weight")}
    shapes = {module: tuple(state[key].shape) for module, key in keys.items()}
    for adapter in lora.vae:
        require_fit(adapter, shapes, lora.sentence, "the connected VAE", str(lora.base))
        if lora.modulator is None:
            _patch(patched.patcher, adapter, keys, strength * adapter.strength)
    patched.patcher.set_attachments(CARRIED, Carried(lora, strength))
    return patched


def _patch(patcher: ModelPatcher, adapter: Adapter, keys: dict[str, Any], strength: float) -> None:
    """Add a LoRA to a patcher at a strength; `keys` maps the LoRA's modules to ComfyUI's names of their weights."""
    update = adapter.update
    patches = comfy.lora.load_lora(low_rank.to_tensors(update), {module: keys[module] for module in update})
    patched = patcher.add_patches(patches, strength)
    left_out = [module for module in update if keys[module] not in patched]
    if left_out:
        raise UserError(f"ComfyUI did not apply the LoRA to {shortened(left_out)}: update ComfyUI.")


def _replace(
    patcher: ModelPatcher,
    lora: OneStepLora,
    replaced: Mapping[str, Tensor],
    names: Mapping[str, str],
    target: str,
    *,
    whole: bool,
) -> None:
    """Add whole replaced weights to a patcher; `names` maps diffusers' parameters to ComfyUI's names.

    Raises UserError for weights that the target does not have, and if `whole`, for weights of the target that would be
    kept.
    """
    shapes = {name: tuple(weight.shape) for name, weight in patcher.model.named_parameters()}
    # Not those that another copy of the MODEL may have added.
    kept = sorted((shapes.keys() & set(names.values())) - {names.get(name) for name in replaced})
    if whole and replaced and kept:
        raise UserError(
            f"{lora.sentence}, but it lacks {len(kept)} weights of {target} ({shortened(kept)}): download it again."
        )
    for name, tensor in replaced.items():
        shape = shapes.get(names.get(name, ""), ())
        # The attention of ComfyUI's VAE has convolutions where diffusers has linear layers.
        if shape not in (tensor.shape, (*tensor.shape, 1, 1)):
            raise UserError(
                f"{lora.sentence}, but {target} has no {name} of shape {tuple(tensor.shape)}: use {lora.base}."
            )
        patcher.add_patches({names[name]: ("set", (tensor.reshape(shape),))})


def open_model(
    model: ModelPatcher, vae: VAE, conditioning: Conditioning, recipe: str, negative: Conditioning | None = None
) -> OpenedModel:
    """An SR model from a MODEL and a VAE that have the LoRA, and its prompts.

    If the LoRA's method does not have the given recipe, the LoRA's own is used. Raises UserError for a MODEL without
    a LoRA, for a VAE or CONDITIONING of another base, and for a missing negative prompt.
    """
    carried, latent_format = require_carried(model), model.get_model_object(LATENT_FORMAT)
    lora, process = carried.lora, process_of(model)
    require_vae(vae, latent_format.latent_channels, str(lora.base))
    _require_same(vae, lora)
    chosen = recipe_of(model, recipe)
    conditioner = _conditioner(model, chosen, conditioning, negative)
    pictures = pictures_of(conditioning, *([negative] if negative and chosen.guidance != 1 else []))
    start = start_level(chosen, process)

    def assembled(model: ModelPatcher, vae: VAE) -> SRModel:
        passes = [
            Pass(step, GuidedDenoiser(each, process.level, start, carried.control))
            for step, each in passes_of(model, chosen)
        ]
        codec = VAECodec(vae, latent_format)
        model = SRModel(chosen, passes[0].denoiser, codec, conditioner, passes=tuple(passes), pictures=pictures)
        if not carried.family.sees_picture or not isinstance(conditioner, host_image_attention.PicturePrompts):
            return model
        return replace(model, look_again=conditioner.look_again)

    if lora.modulator is None:
        return OpenedModel(carried.family, assembled(model, vae), warnings=_warnings(vae, lora))
    strength = _vae_strength(vae, lora)
    by_picture = replace(
        assembled(model, vae), by_picture=lambda picture: assembled(*_for_picture(model, vae, strength, picture))
    )
    return OpenedModel(carried.family, by_picture, (lora.modulator,))


def _conditioner(
    model: ModelPatcher, recipe: Recipe, conditioning: Conditioning, negative: Conditioning | None
) -> Conditioner:
    """The conditioner for the prompts. Raises UserError for prompts of another base, and for a missing one."""
    carried, width = require_carried(model), _base_module(model).prompt_width(model)
    require_prompt(conditioning, width, str(carried.lora.base))
    positive = host_image_attention.conditioner_for(conditioning, carried.family, carried.control)
    if recipe.guidance == 1:
        return positive
    if negative is None:
        raise UserError(f"{recipe.title} needs a negative prompt: connect negative of One-Step SR Prompt.")
    require_prompt(negative, width, str(carried.lora.base))
    return lambda picture, index: Guided(
        positive(picture, index), [row_of(*entry, index) for entry in negative], recipe.guidance
    )


def _require_same(vae: VAE, lora: OneStepLora) -> None:
    """Raises UserError if the VAE carries the LoRA of another method than the MODEL."""
    carried = carried_by(vae.patcher)
    if carried is not None and carried.family.name != lora.family.name:
        raise UserError(
            f"The connected VAE has the LoRA of {carried.family.title}, but the MODEL that of {lora.family.title}: "
            "connect both outputs of the same Apply One-Step SR LoRA."
        )


def _warnings(vae: VAE, lora: OneStepLora) -> tuple[str, ...]:
    """If the VAE lacks the LoRA's part for it, which saved graphs may do on purpose."""
    if carried_by(vae.patcher) is not None or not (lora.vae or lora.replaced_vae):
        return ()
    return (
        f"{lora.family.title} also changes the VAE, but the connected one does not have its LoRA: connect vae of "
        "Apply One-Step SR LoRA.",
    )


def _vae_strength(vae: VAE, lora: OneStepLora) -> float:
    """At which the VAE carries the LoRA. Raises UserError if it carries none."""
    carried = carried_by(vae.patcher)
    if carried is None:
        raise UserError(
            f"The connected VAE does not have the {lora.family.title} LoRA: connect it through Apply One-Step SR LoRA."
        )
    return carried.strength


def _for_picture(model: ModelPatcher, vae: VAE, vae_strength: float, picture: Tensor) -> tuple[ModelPatcher, VAE]:
    """Copies of the MODEL and the VAE with the LoRA that they carry, for a picture (1, 3, H, W) in [0, 1]. ComfyUI
    changes the weights when they run."""
    carried, patched = require_carried(model), model.clone()
    lora = carried.lora.for_picture(picture)
    _add_adapters(patched, lora, _scales(lora, carried.strength))
    return patched, apply_vae_lora(vae, lora, vae_strength)
