"""Menu group `image/upscaling/One-Step SR`."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from comfy_api.latest import io

from ..sr_models.canvas.color import COLOR_MATCHES, ColorMatch
from ..sr_models.canvas.resize import resize
from ..sr_models.canvas.target import FACTOR, MAX_SCALE, MIN_SCALE, MIN_SIDE, SIZES, chosen_target
from ..sr_models.canvas.wrap import WRAPS, Wrap
from ..sr_models.checkpoints.prompt_embeddings import POOLED_FILE, PROMPT_FILE
from ..sr_models.checkpoints.weights_file import Stamp, file_stamps
from ..sr_models.core.forecast import forecast, needs, workspace
from ..sr_models.core.options import DETAIL, UpscaleOptions
from ..sr_models.core.region import upscale_regions
from ..sr_models.core.upscale import upscale
from ..sr_models.errors import UserError
from ..sr_models.families.bundled import BUNDLED
from ..sr_models.families.loading import load
from ..sr_models.families.registry import FAMILIES, identify
from . import host, host_upscale_model, pace
from .schema import advanced, schema

SRModelSocket = io.Custom("SR_MODEL")
LOADER = "Load 4x Super Resolution Model (One-Step SR)"
COMBINER = "Combine TSD-SR Parts (One-Step SR)"
CATEGORY = "image/upscaling/One-Step SR"
BUNDLED_NAME = "bundled"
AUTO = "auto"
MODELS_OVERLAP = -1  # as on the command line; saved workflows have the earlier default, 64
EMBEDDING_FILES = (PROMPT_FILE, POOLED_FILE)  # One-Step SR Prompt's


class LoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = [name for name in host.weights_files(host.MODEL_FOLDER) if Path(name).name not in EMBEDDING_FILES]
        autoencoders = host.weights_files(host.MODEL_FOLDER, "vae")
        return schema(
            node_id="OneStepSRLoadModel",
            search_aliases=["tad-sr", "sinsr", "resshift", "upscale model", "super resolution", "4x"],
            display_name=LOADER,
            category=CATEGORY,
            description="Load a model for Upscale Image (One-Step SR): the bundled one, or a TAD-SR, SinSR or ResShift "
            "x4 file from models/onestep_sr.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=[BUNDLED_NAME, *files],
                    default=BUNDLED_NAME,
                    tooltip="'bundled' needs no download. Put published files in models/onestep_sr.",
                ),
                io.Combo.Input(
                    "autoencoder",
                    options=[AUTO, *autoencoders],
                    default=AUTO,
                    tooltip="Published files need an autoencoder. auto: uses the one with its published name from the "
                    "model's folder.",
                ),
                io.Combo.Input(
                    "recipe",
                    options=[AUTO, *FAMILIES.model_recipes],
                    default=AUTO,
                    tooltip="The method of a published file. auto: detected from the file name. Not used by 'bundled'.",
                ),
            ],
            outputs=[
                SRModelSocket.Output(display_name="SR_MODEL", tooltip="For Upscale Image (One-Step SR)."),
                io.UpscaleModel.Output(
                    display_name="UPSCALE_MODEL",
                    tooltip="The same model, for Upscale Image (using Model) and other packs' upscalers.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, model: str | None, autoencoder: str | None, recipe: str | None) -> tuple[Stamp, ...]:
        """Makes the host read files again that were replaced on disk. Linked inputs are None here."""
        paths = [model_path(model or BUNDLED_NAME)]
        if model not in (None, BUNDLED_NAME):
            chosen = _autoencoder_path(autoencoder or AUTO)
            paths += [paths[0].with_name(name) for name in FAMILIES.files_beside] if chosen is None else [chosen]
        return file_stamps(paths)

    @classmethod
    def execute(cls, model: str, autoencoder: str, recipe: str) -> io.NodeOutput:
        path = model_path(model)
        is_published = bool(identify(path).recipes)  # others need neither, but saved workflows may hold a choice
        loaded = load(
            path,
            autoencoder=_autoencoder_path(autoencoder) if is_published else None,
            recipe=recipe if is_published and recipe != AUTO else None,
            dtype=host.compute_dtype(),
            spill=host.temporary_folder(),
        )
        for notice in host.licence_notices(loaded.family):
            host.show_on_node(cls.hidden.unique_id, notice)
        hosted = host.adopt(loaded)
        return io.NodeOutput(hosted, host_upscale_model.HostedUpscaler(hosted))


def model_path(model: str) -> Path:
    return BUNDLED if model == BUNDLED_NAME else host.weights_path(model, host.MODEL_FOLDER)


def _autoencoder_path(autoencoder: str) -> Path | None:
    return None if autoencoder == AUTO else host.weights_path(autoencoder, host.MODEL_FOLDER, "vae")


class UpscaleImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="OneStepSRUpscaleImage",
            search_aliases=["upscale", "enlarge", "super resolution", "4x", "tsd-sr", "tad-sr"],
            display_name="Upscale Image (One-Step SR)",
            category=CATEGORY,
            description="Upscale images with one pass of the network per tile, to exactly upscale_by times their "
            "size or to a chosen size.",
            inputs=[
                SRModelSocket.Input(
                    "sr_model",
                    display_name="sr_model",
                    tooltip=f"From {LOADER}, or from {COMBINER} for one-step LoRAs.",
                ),
                io.Image.Input(
                    "image", tooltip="Any number of images, at least 8 px per side. A fourth channel is kept as alpha."
                ),
                io.Float.Input(
                    "upscale_by",
                    default=4.0,
                    min=MIN_SCALE,
                    max=MAX_SCALE,
                    step=0.05,
                    tooltip="Upscale factor. Above 4, the image is enlarged before the network. Below 4, the network's "
                    "result is shrunk.",
                ),
                io.Int.Input(
                    "tile",
                    default=0,
                    min=0,
                    max=8192,
                    step=64,
                    tooltip="Tile side in pixels of the network's result. 0: the model's default. "
                    "Smaller tiles need less memory.",
                ),
                advanced(
                    io.Int.Input(
                        "overlap",
                        default=MODELS_OVERLAP,
                        min=MODELS_OVERLAP,
                        max=1024,
                        step=1,
                        tooltip="Overlap of neighbouring tiles in pixels, where they are blended. At most half a tile. "
                        "-1: the model's default.",
                    ),
                ),
                io.Combo.Input(
                    "color",
                    options=[AUTO, *COLOR_MATCHES],
                    default=AUTO,
                    tooltip="How to match the result's colours to the image's. auto: the model's default.",
                ),
                advanced(
                    io.Int.Input(
                        "seed",
                        default=0,
                        min=0,
                        max=2**63 - 1,
                        control_after_generate=False,
                        tooltip="Seed of the noise that the model starts from. The same seed gives the same image.",
                    ),
                ),
                io.Float.Input(
                    "detail",
                    optional=True,
                    default=DETAIL,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="0: faithful to the image. 1: detailed. For models that contain both, as made by "
                    "onestep-sr train join; others ignore it.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Connect the MASK of Load Image to keep transparency. White is transparent. "
                    "The result then has an alpha channel.",
                ),
                io.Combo.Input(
                    "size",
                    optional=True,
                    options=list(SIZES),
                    default=FACTOR,
                    tooltip="How the result's size is chosen. factor: by upscale_by. A side: it gets the length in "
                    "pixels. megapixels: the area. fit: the largest size that fits the screen. The image keeps its "
                    "proportions; at most 8 times its size.",
                ),
                io.Int.Input(
                    "pixels",
                    optional=True,
                    default=4096,
                    min=MIN_SIDE,
                    max=65536,
                    tooltip="Length of the side that size names, in px.",
                ),
                io.Float.Input(
                    "megapixels",
                    optional=True,
                    default=12.0,
                    min=0.01,
                    max=1000.0,
                    step=0.01,
                    tooltip="Area of the result in million px, if size is megapixels.",
                ),
                io.Float.Input(
                    "strength",
                    optional=True,
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="How much of the model's detail the result has. 0: as enlarged without a model. What the "
                    "image itself holds stays the same.",
                ),
                advanced(
                    io.Combo.Input(
                        "wrap",
                        optional=True,
                        options=list(WRAPS),
                        default=WRAPS[0],
                        tooltip="For tileable textures and panoramas. x: the right border continues at the left one. "
                        "y: the lower one at the upper.",
                    ),
                ),
                io.Mask.Input(
                    "region",
                    optional=True,
                    tooltip="Where to use the model; elsewhere the image is only enlarged. One mask for all images, "
                    "one per image, or several for one image, such as a detector's faces.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="IMAGE", tooltip="The result, with an alpha channel if there is transparency."
                ),
                io.Image.Output(display_name="RGB", tooltip="The result without an alpha channel, for any node."),
                io.Mask.Output(display_name="MASK", tooltip="The result's transparency. White is transparent."),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,  # the image's size, for the plan of a page that was loaded again
        )

    @classmethod
    def execute(
        cls,
        sr_model: host.HostedModel,
        image: torch.Tensor,
        upscale_by: float,
        tile: int,
        overlap: int,
        color: ColorMatch | Literal["auto"],
        seed: int,
        mask: torch.Tensor | None = None,
        region: torch.Tensor | None = None,
        **later: Any,
    ) -> io.NodeOutput:
        model, node_id = sr_model.model, cls.hidden.unique_id
        height, width = image.shape[1:3]
        matched = None if color == AUTO else color
        shared = None if overlap < 0 else overlap
        options = completed(UpscaleOptions(upscale_by, tile or None, shared, matched, seed), **later)
        run = forecast(model.recipe, model.codec.factor, (height, width), options)
        if region is None:
            for need in needs(run, len(image), host.compute_device(), host.free_memory):
                if need.level == "too little":
                    host.show_on_node(node_id, f"This run needs about {need}.")
        sr_model.to_device(workspace(model, (height, width), options))
        bar, started = host.Bar(), time.monotonic()
        work = upscale if region is None else partial(upscale_regions, masks=as_masks(region).to(image.device))
        result = work(
            model,
            with_alpha(host.from_host(image), mask),
            options=options,
            progress=bar.tile,
            notice=lambda notice: host.show_on_node(node_id, notice),
            stage=bar.stage,
        )
        if region is None and run.work:
            pace.record(model.recipe.name, run.work * len(image), time.monotonic() - started)
        return io.NodeOutput(*as_outputs(result), ui={"image_size": [width, height]})


def completed(
    options: UpscaleOptions,
    detail: float = DETAIL,
    size: str = FACTOR,
    pixels: int = 0,
    megapixels: float = 0.0,
    strength: float = 1.0,
    wrap: Wrap = "none",
) -> UpscaleOptions:
    """The options with the inputs that workflows of earlier versions do not have. Raises UserError as they do."""
    target = chosen_target(size, pixels, megapixels)
    return replace(options, detail=detail, target=target, strength=strength, wrap=wrap)


def as_outputs(result: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The result (B, 3 or 4, H, W) as it is, without alpha, and its MASK (B, H, W), for ComfyUI."""
    image = host.to_host(result)
    mask = 1 - image[..., 3] if image.shape[-1] == 4 else image.new_zeros(image.shape[:3])
    return image, image[..., :3], mask


def as_masks(mask: torch.Tensor) -> torch.Tensor:
    """A ComfyUI mask (M, h, w) or (h, w) as (M, 1, h, w)."""
    return mask.reshape(-1, 1, *mask.shape[-2:]).float()


def with_alpha(image: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The image (B, C, H, W) with a ComfyUI mask (B or 1, h, w; 1 is transparent) as its fourth channel.

    An empty mask, which Load Image gives for images without transparency, changes nothing. Raises UserError unless
    there is one mask, or one per image.
    """
    if mask is None or not mask.any():
        return image
    alpha = resize(1 - as_masks(mask), (image.shape[-2], image.shape[-1])).clamp(0, 1)
    if len(alpha) not in (1, len(image)):
        raise UserError(f"There are {len(alpha)} masks for {len(image)} images: connect one, or one per image.")
    return torch.cat([image[:, :3], alpha.to(image.device).expand(len(image), -1, -1, -1)], dim=1)
