"""Menu group `image/upscaling/One-Step SR`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import torch
from comfy_api.latest import io

from ..sr_models.canvas.color import COLOR_MATCHES, ColorMatch
from ..sr_models.canvas.resize import resize
from ..sr_models.canvas.target import MAX_SCALE, MIN_SCALE
from ..sr_models.checkpoints.prompt_embeddings import POOLED_FILE, PROMPT_FILE
from ..sr_models.checkpoints.weights_file import Stamp, file_stamps
from ..sr_models.core.forecast import forecast, workspace
from ..sr_models.core.options import DETAIL, UpscaleOptions
from ..sr_models.core.upscale import upscale
from ..sr_models.errors import UserError
from ..sr_models.families.bundled import BUNDLED
from ..sr_models.families.loading import load
from ..sr_models.families.registry import FAMILIES, identify
from ..sr_models.families.resshift import AUTOENCODER_NAME
from . import host, pace
from .schema import advanced, schema

SRModelSocket = io.Custom("SR_MODEL")
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
            search_aliases=["tad-sr", "sinsr", "resshift", "upscale model", "super resolution"],
            display_name="Load One-Step SR Model",
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
                    tooltip=f"Published files need the VQ-f4 autoencoder. auto: uses {AUTOENCODER_NAME} from the "
                    "model's folder.",
                ),
                io.Combo.Input(
                    "recipe",
                    options=[AUTO, *FAMILIES.model_recipes],
                    default=AUTO,
                    tooltip="The method of a published file. auto: detected from the file name. Not used by 'bundled'.",
                ),
            ],
            outputs=[SRModelSocket.Output(display_name="SR_MODEL", tooltip="For Upscale Image (One-Step SR).")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, model: str | None, autoencoder: str | None, recipe: str | None) -> tuple[Stamp, ...]:
        """Makes the host read files again that were replaced on disk. Linked inputs are None here."""
        paths = [model_path(model or BUNDLED_NAME)]
        if model not in (None, BUNDLED_NAME):
            paths.append(_autoencoder_path(autoencoder or AUTO) or paths[0].with_name(AUTOENCODER_NAME))
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
        return io.NodeOutput(host.adopt(loaded))


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
            description="Upscale images with one pass of the network per tile, to exactly upscale_by times their size.",
            inputs=[
                SRModelSocket.Input(
                    "sr_model",
                    display_name="sr_model",
                    tooltip="From Load One-Step SR Model, or from One-Step SR Model for TSD-SR.",
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
            ],
            outputs=[io.Image.Output(display_name="IMAGE", tooltip="The image, exactly upscale_by times as large.")],
            hidden=[io.Hidden.unique_id],
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
        detail: float = DETAIL,
        mask: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        model, node_id = sr_model.model, cls.hidden.unique_id
        height, width = image.shape[1:3]
        matched = None if color == AUTO else color
        shared = None if overlap < 0 else overlap
        options = UpscaleOptions(upscale_by, tile or None, shared, matched, seed, detail=detail)
        sr_model.to_device(workspace(model, (height, width), options))
        bar, started = host.Bar(), time.monotonic()
        result = upscale(
            model,
            with_alpha(host.from_host(image), mask),
            options,
            progress=bar.tile,
            notice=lambda notice: host.show_on_node(node_id, notice),
            stage=bar.stage,
        )
        run = forecast(model.recipe, model.codec.factor, (height, width), options)
        pace.record(model.recipe.name, run.work * len(image), time.monotonic() - started)
        return io.NodeOutput(host.to_host(result), ui={"image_size": [width, height]})


def with_alpha(image: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The image (B, C, H, W) with a ComfyUI mask (B or 1, h, w; 1 is transparent) as its fourth channel.

    An empty mask, which Load Image gives for images without transparency, changes nothing. Raises UserError unless
    there is one mask, or one per image.
    """
    if mask is None or not mask.any():
        return image
    alpha = resize(1 - mask.reshape(-1, 1, *mask.shape[-2:]).float(), (image.shape[-2], image.shape[-1])).clamp(0, 1)
    if len(alpha) not in (1, len(image)):
        raise UserError(f"There are {len(alpha)} masks for {len(image)} images: connect one, or one per image.")
    return torch.cat([image[:, :3], alpha.to(image.device).expand(len(image), -1, -1, -1)], dim=1)
