"""A LoRA's step as a sampler for ComfyUI's own sampling nodes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from comfy import model_management
from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider, Sampler
from torch import Tensor

from ..sr_models.canvas.resize import pad_to_multiple, resize
from ..sr_models.canvas.tiling import Tile, plan
from ..sr_models.core.recipe import Recipe
from ..sr_models.core.tiled_step import Canvas, step_tiles
from ..sr_models.errors import UserError
from .host_image_attention import Conds, seeing_conds, seen_pictures
from .host_lora import passes_of, process_of, recipe_of, require_carried
from .host_prompts import require_rows
from .host_sd import LATENT_FORMAT, VAE_FACTOR, WorkSampler, as_network

Callback = Callable[[int, Tensor, Tensor, int], object]


class OneStepSampler(Sampler):
    """The step of the LoRA that the MODEL carries. It starts from the latent image, to which it adds the given noise
    only if the LoRA's method does.

    `tile` and `overlap` are in latent pixels; None uses the method's own. `batch` is how many tiles the model processes
    at once.
    """

    def __init__(self, tile: int | None, overlap: int | None, batch: int):
        self.tile, self.overlap, self.batch = tile, overlap, batch

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> Tensor:
        model = model_wrap.model_patcher
        carried, recipe, process = require_carried(model), _recipe_of(model), process_of(model)
        require_guidance(model_wrap, recipe)
        latent_image = checked_start(latent_image, sigmas, model.get_model_object(LATENT_FORMAT).latent_channels)
        latent, passes = pad_to_multiple(latent_image, recipe.multiple), passes_of(model, recipe)
        overlap = recipe.overlap if self.overlap is None else self.overlap
        tiles = list(plan(latent.shape[-2], latent.shape[-1], self.tile or recipe.tile, overlap))
        shown = _Shown(callback, latent_image, latent, len(tiles) * len(passes))
        result = torch.zeros_like(latent)
        conds = model_wrap.original_conds
        if carried.family.sees_picture:
            conds = seeing_conds(conds, carried.family, carried.control)
        canvas = Canvas(latent, _padded_noise(noise, recipe), lr=_seen(model_wrap, latent_image, recipe))
        require_rows(model_wrap, len(latent_image))
        work = partial(step_tiles, canvas=canvas, tiles=tiles, result=result, batch=self.batch)
        for number, (step, other) in enumerate(passes):
            # Only the first pass's tiles look like a picture.
            run = partial(work, step=step, done=shown.count if number else shown.tile)
            if number == 0 and conds is model_wrap.original_conds:
                failed = run(as_network(model_wrap, noise.device, extra_args, process.level))
            else:
                sampler = WorkSampler(run, process.level, carried.control)
                failed = _sampled_anew(model_wrap, other, conds, sampler, sigmas, latent)
            if failed:
                raise UserError(
                    "The model returned values that are not finite: load the checkpoint in another precision."
                )
        result = result[..., : latent_image.shape[-2], : latent_image.shape[-1]]
        if denoise_mask is not None:
            result = latent_image + (result - latent_image) * denoise_mask
        shown.end(result)
        return result


class _Shown:
    """Reports tiles to ComfyUI's callback, with the latent as it grows. `latent` is the padded start."""

    def __init__(self, callback: Callback | None, start: Tensor, latent: Tensor, total: int):
        self.callback, self.start, self.growing, self.total, self.done = callback, start, latent.clone(), total, 0

    def tile(self, tile: Tile, piece: Tensor) -> None:
        tile.cut(self.growing).copy_(piece)
        self.count(tile, piece)

    def count(self, tile: Tile, piece: Tensor) -> None:
        """A tile that is not shown. The last one is left to `end`."""
        self.done += 1
        if self.done < self.total:
            self._report(self.growing[..., : self.start.shape[-2], : self.start.shape[-1]])
        model_management.throw_exception_if_processing_interrupted()

    def end(self, result: Tensor) -> None:
        self.done = self.total
        self._report(result)

    def _report(self, latent: Tensor) -> None:
        if self.callback is not None:
            self.callback(self.done - 1, latent, self.start, self.total)


def _recipe_of(model: ModelPatcher) -> Recipe:
    """The recipe of the MODEL's LoRA. Raises UserError for a MODEL without a LoRA, or with one that still depends on
    the picture."""
    carried = require_carried(model)
    if carried.lora.needs_picture:
        raise UserError(
            f"{carried.family.title} depends on the picture: connect the small image to Apply One-Step SR LoRA."
        )
    return recipe_of(model)


def _seen(guider: CFGGuider, start: Tensor, recipe: Recipe) -> Tensor:
    """The picture that a ControlNet or a predictor sees, in [-1, 1]; the latent in its place for networks that see
    none. `start` is the latent image.

    Raises UserError if there is not one picture for each latent.
    """
    carried, (count, _, height, width) = require_carried(guider.model_patcher), start.shape
    pixels = VAE_FACTOR // recipe.scale  # per latent pixel
    if carried.lora.picture is not None:
        pictures = carried.lora.picture.to(start)
    elif carried.control is not None:
        pictures = seen_pictures(guider.original_conds).to(start)
    else:
        return pad_to_multiple(start, recipe.multiple)
    if len(pictures) not in (1, count):
        raise UserError(
            f"The CONDITIONING is for {len(pictures)} images, but the latent for {count}: connect One-Step SR Tags "
            "and VAE Encode to the same images."
        )
    resized = resize(pictures, (height * pixels, width * pixels), recipe.enlarging).clamp(0, 1)
    return pad_to_multiple(resized, recipe.multiple * pixels).expand(count, -1, -1, -1) * 2 - 1


def require_guidance(guider: CFGGuider, recipe: Recipe) -> None:
    """Raise UserError if the recipe uses guidance and the guider has no negative prompt."""
    if recipe.guidance != 1 and "negative" not in guider.conds:
        raise UserError(
            f"{recipe.title} needs a negative prompt: use CFGGuider with cfg {recipe.guidance:g} and negative of "
            "One-Step SR Prompt in place of BasicGuider."
        )


def _sampled_anew(
    guider: CFGGuider, model: ModelPatcher, conds: Conds, sampler: WorkSampler, sigmas: Tensor, latent: Tensor
) -> list[Tile]:
    """Run the sampler's work with the same guider on another MODEL, or with other conditions; returns the work's
    result."""
    other, nothing = copy.copy(guider), torch.zeros_like(latent)
    other.model_patcher, other.model_options, other.original_conds = model, model.model_options, conds
    other.sample(nothing, nothing, sampler, sigmas, disable_pbar=True, seed=0)
    return sampler.result


def _padded_noise(noise: Tensor, recipe: Recipe) -> Tensor | None:
    """The noise of the canvas; None for methods that need none. Raises UserError if it is missing."""
    if not recipe.step.noises:
        return None
    if not noise.any():
        raise UserError(f"{recipe.title} starts from noise: connect RandomNoise in place of DisableNoise.")
    return pad_to_multiple(noise, recipe.multiple)


def checked_start(latent: Tensor | None, sigmas: Tensor, channels: int) -> Tensor:
    """The latent. Raises UserError unless it and the sigmas are what the sampler starts from."""
    if latent is None or latent.ndim != 4 or latent.shape[1] != channels:
        raise UserError(
            f"One-Step SR Sampler needs the latent of an image with {channels} channels, but got "
            f"{None if latent is None else tuple(latent.shape)}: connect VAE Encode with the VAE of Apply One-Step "
            "SR LoRA."
        )
    if abs(float(sigmas[0]) - 1) > 1e-3:
        raise UserError(
            f"One-Step SR Sampler starts at sigma 1, but the connected SIGMAS start at {sigmas[0]:.3g}: connect its "
            "own SIGMAS output."
        )
    return latent
