"""Menu group `image/upscaling/One-Step SR/Stable Diffusion`: one-step LoRAs on the host's own MODEL and VAE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from ..sr_models.checkpoints import prompt_embeddings
from ..sr_models.checkpoints.weights_file import Stamp, file_stamps
from ..sr_models.errors import UserError
from ..sr_models.families.family import OneStepLora
from ..sr_models.families.registry import FAMILIES, files_with, read_lora
from ..sr_models.families.tsd_sr import TSD_SR
from . import host, host_lora, host_prompts, host_sampler, host_sd
from .kept import Kept
from .schema import advanced, schema
from .upscaling import AUTO, COMBINER, SRModelSocket

CATEGORY = "image/upscaling/One-Step SR/Stable Diffusion"
LORA_FOLDER = "loras"
EMBEDDING_FOLDERS = (host.MODEL_FOLDER, "embeddings", LORA_FOLDER)
FROM_TEXT = "from text"
FROM_LORA = "from LoRA"
APPLY_ID, MODEL_ID = "OneStepSRApplyLoRA", "OneStepSRModel"
UNET_FAMILIES = [family.name for family in FAMILIES.loras if family.network == "unet"]  # to search nodes by
PIXEL_STRENGTH, SEMANTIC_STRENGTH = "strength_pixel", "strength_semantic"


class ApplyLoRA(io.ComfyNode):
    # A change of strengths reads no file, however many of these nodes the graph has.
    loras: Kept[tuple[Stamp, ...], OneStepLora] = Kept()

    @classmethod
    def define_schema(cls) -> io.Schema:
        files = host.weights_files(LORA_FOLDER)
        return schema(
            node_id=APPLY_ID,
            search_aliases=["tsd-sr", "tsdsr", *UNET_FAMILIES, "one step lora", "super resolution"],
            display_name="Apply One-Step SR LoRA",
            category=CATEGORY,
            description="Apply a one-step LoRA to a checkpoint: to its MODEL, and to the encoder of its VAE if the "
            "LoRA has a part for it. TSD-SR needs Stable Diffusion 3 medium, PiSA-SR, OSEDiff, HYPIR, OMGSR-S, "
            "GDPO-SR and TAD-SeeSR need 2.1-base, S3Diff and InvSR need SD-Turbo, and a LoRA that you trained needs "
            "its own base. The connected MODEL and VAE are not changed.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="From a checkpoint of the LoRA's base, such as Stable Diffusion 3 medium for TSD-SR or "
                    "2.1-base for PiSA-SR, OSEDiff, HYPIR, OMGSR-S, GDPO-SR and TAD-SeeSR, and SD-Turbo for S3Diff and "
                    "InvSR.",
                ),
                io.Vae.Input("vae", tooltip="From the same checkpoint."),
                io.Combo.Input(
                    "lora",
                    options=files,
                    tooltip="A file in models/loras: TSD-SR's transformer.safetensors, pisa_sr.pkl, osediff.pkl, "
                    "HYPIR_sd2.pth, OMGSR-S's adapter_model.safetensors, GDPO-SR's or TAD-SeeSR's "
                    "diffusion_pytorch_model.safetensors, s3diff.pkl with de_net.pth next to it, "
                    "noise_predictor_sd_turbo_v5.pth, your own transformer.safetensors or unet.safetensors, or a file "
                    "from onestep-sr convert.",
                ),
                advanced(
                    io.Combo.Input(
                        "vae_lora",
                        options=[AUTO, *files],
                        default=AUTO,
                        tooltip="TSD-SR's vae.safetensors. auto: uses the one in the same file or folder as lora.",
                    ),
                ),
                io.Float.Input(
                    "strength_model",
                    default=1.0,
                    min=-2.0,
                    max=2.0,
                    step=0.05,
                    tooltip="1 is the published strength. Lower values give a softer result.",
                ),
                advanced(
                    io.Float.Input(
                        "strength_vae",
                        default=1.0,
                        min=-2.0,
                        max=2.0,
                        step=0.05,
                        tooltip="1 is the published strength.",
                    ),
                ),
                io.Float.Input(
                    PIXEL_STRENGTH,
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    optional=True,
                    tooltip="For PiSA-SR: fidelity. Higher values remove more noise and blur.",
                ),
                io.Float.Input(
                    SEMANTIC_STRENGTH,
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    optional=True,
                    tooltip="For PiSA-SR: detail. Higher values invent more detail. If it differs from "
                    "strength_pixel, the model runs twice.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="For S3Diff and InvSR in a graph of stock nodes: the small image, on which the LoRA "
                    "depends. Not needed for Upscale Image (One-Step SR), which uses its own image.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="MODEL", tooltip="The MODEL with the LoRA, and with its latent format if it has one."
                ),
                io.Vae.Output(display_name="VAE", tooltip="The VAE with the LoRA on its encoder."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str | None = None, vae_lora: str | None = None, **others) -> tuple[Stamp, ...]:
        """Makes the host read files again that were replaced on disk. Linked inputs are None here."""
        paths = [_lora_path(name) for name in (lora, vae_lora) if name and name != AUTO]
        return file_stamps([*paths, *(file for path in paths for file in files_with(path))])

    @classmethod
    def execute(
        cls,
        model,
        vae,
        lora: str,
        vae_lora: str,
        strength_model: float,
        strength_vae: float,
        strength_pixel: float = 1.0,
        strength_semantic: float = 1.0,
        image: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        paths = (_lora_path(lora), None if vae_lora == AUTO else _lora_path(vae_lora))
        stamps, used = cls.fingerprint_inputs(lora, vae_lora), cls._stamps_in(cls.hidden.prompt or {})
        read, ignored = _at(cls.loras.get(stamps, used, partial(read_lora, *paths)), strength_pixel, strength_semantic)
        ignored = (*ignored, *_unused(read, strength_model, strength_vae))
        read = _for_image(read, image)
        patched, warnings = host_lora.apply_lora(model, read, strength_model)
        host_sd.require_vae(vae, patched.get_model_object(host_sd.LATENT_FORMAT).latent_channels, str(read.base))
        host.show_on_node(cls.hidden.unique_id, " ".join([*host.licence_notices(read.family), *warnings, *ignored]))
        return io.NodeOutput(patched, host_lora.apply_vae_lora(vae, read, strength_vae))

    @classmethod
    def _stamps_in(cls, prompt: Mapping[str, Any]) -> set[tuple[Stamp, ...]]:
        """The files of all nodes of this kind in a graph, except those that another node names."""
        chosen = (node["inputs"] for node in prompt.values() if node["class_type"] == APPLY_ID)
        names = ((each.get("lora"), each.get("vae_lora")) for each in chosen)
        return {cls.fingerprint_inputs(*each) for each in names if all(isinstance(name, str) for name in each)}


def _at(lora: OneStepLora, pixel: float, semantic: float) -> tuple[OneStepLora, tuple[str, ...]]:
    """The LoRA at the strengths that it has, and a sentence about those that it does not have."""
    chosen = {"pixel": pixel, "semantic": semantic}
    known = {name: strength for name, strength in chosen.items() if name in lora.strengths}
    if known or set(chosen.values()) == {1.0}:
        return lora.at(known), ()
    return lora, (f"{lora.family.title} does not use {PIXEL_STRENGTH} and {SEMANTIC_STRENGTH}.",)


def _unused(lora: OneStepLora, model: float, vae: float) -> tuple[str, ...]:
    """A sentence about a strength that is not 1 and has nothing to change."""
    given = (("strength_model", model, lora.network), ("strength_vae", vae, lora.vae))
    names = [name for name, strength, adapters in given if strength != 1 and not adapters]
    return (f"{lora.family.title} does not use {' and '.join(names)}.",) if names else ()


def _for_image(lora: OneStepLora, image: torch.Tensor | None) -> OneStepLora:
    """The LoRA for the connected image, if it depends on one. Raises UserError for several images."""
    if image is None or not lora.needs_picture:
        return lora
    if len(image) != 1:
        raise UserError(f"{lora.family.title} depends on the picture, but there are {len(image)} images: connect one.")
    return lora.for_picture(host.from_host(image)[:, :3])


def _lora_path(name: str) -> Path:
    return host.weights_path(name, LORA_FOLDER)


class Prompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="OneStepSRPrompt",
            search_aliases=[
                "tsd-sr prompt",
                *(f"{name} prompt" for name in UNET_FAMILIES),
                "prompt_embeds",
                "embeddings",
            ],
            display_name="One-Step SR Prompt",
            category=CATEGORY,
            description="Encode the prompt of a one-step LoRA with CLIP, or load TSD-SR's published embeddings, which "
            "need no text encoder.",
            inputs=[
                io.Combo.Input(
                    "embeddings",
                    options=[FROM_TEXT, FROM_LORA, *host.weights_files(*EMBEDDING_FOLDERS)],
                    default=FROM_TEXT,
                    tooltip="'from text' encodes the text below with CLIP. 'from LoRA' uses the prompt of the LoRA of "
                    "the connected MODEL. Or prompt_embeds.pt with pool_embeds.pt next to it in models/onestep_sr, or "
                    "a file from onestep-sr convert.",
                ),
                io.String.Input(
                    "text",
                    default=TSD_SR.prompt,
                    multiline=True,
                    tooltip="TSD-SR was trained with exactly this text and spelling, PiSA-SR and OMGSR-S with an "
                    "empty text, and OSEDiff and GDPO-SR with tags of the image. HYPIR takes a description of the "
                    "image or an empty text, and S3Diff and InvSR have fixed texts ('from LoRA'). Only used with "
                    "'from text'.",
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip="From the same checkpoint, for 'from text' and 'from LoRA'."
                ),
                io.Model.Input("model", optional=True, tooltip="From Apply One-Step SR LoRA, for 'from LoRA'."),
                io.Boolean.Input(
                    "text_per_image",
                    default=False,
                    optional=True,
                    tooltip="For a batch of images with a text each: connect a list of texts to text, such as a "
                    "tagger's, or write one line per image. Only used with 'from text'.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="CONDITIONING", tooltip=f"For {COMBINER} or BasicGuider.", is_output_list=True
                ),
                io.Conditioning.Output(
                    display_name="negative",
                    tooltip="The LoRA's negative prompt, for S3Diff with MODEL and CLIP connected; else the same as "
                    f"CONDITIONING. For {COMBINER} or CFGGuider.",
                    is_output_list=True,
                ),
            ],
            is_input_list=True,
        )

    @classmethod
    def fingerprint_inputs(cls, embeddings: Sequence[str | None] = (), **others) -> tuple[Stamp, ...]:
        """Makes the host read files again that were replaced on disk."""
        paths = [_embeddings_path(name) for name in embeddings if name not in (None, FROM_TEXT, FROM_LORA)]
        names = (prompt_embeddings.PROMPT_FILE, prompt_embeddings.POOLED_FILE)
        return file_stamps([*paths, *(path.with_name(name) for path in paths for name in names)])

    @classmethod
    def execute(
        cls,
        embeddings: Sequence[str],
        text: Sequence[str],
        clip: Sequence[Any] = (None,),
        model: Sequence[Any] = (None,),
        text_per_image: Sequence[bool] = (False,),
    ) -> io.NodeOutput:
        """All inputs are lists. A list of texts gives a list of prompts, or with `text_per_image` one prompt with a row
        for each."""
        if not text:
            raise UserError("The connected list of texts is empty: connect one text, or one per image.")
        texts = [_text_per_image(text)] if text_per_image[0] else [[each] for each in text]
        lists: list[Any] = [embeddings, texts, clip, model]
        count = max(map(len, lists))
        # As the host does for other nodes: the last value of a shorter list is repeated.
        prompts = [_prompt(*(each[min(i, len(each) - 1)] for each in lists)) for i in range(count)]
        return io.NodeOutput(*map(list, zip(*prompts, strict=True)))


def _text_per_image(text: Sequence[str]) -> Sequence[str]:
    """The texts of a list, or the lines of a single text."""
    return text if len(text) > 1 else text[0].splitlines() or [""]


def _prompt(embeddings: str, texts: Sequence[str], clip: Any, model: Any) -> tuple[Any, Any]:
    """The CONDITIONING of the prompt, and that of the negative prompt."""
    read = None
    if embeddings == FROM_LORA:
        if model is None:
            raise UserError("One-Step SR Prompt needs the MODEL with the LoRA: connect it to model.")
        text, read = host_lora.prompt_of(model)
        texts = [text]
    elif embeddings != FROM_TEXT:
        read = prompt_embeddings.read_embeddings(_embeddings_path(embeddings))
    if read is not None:
        conditioning = [[read.prompt, {"pooled_output": read.pooled}]]
        return conditioning, conditioning
    if clip is None:
        raise UserError("One-Step SR Prompt needs CLIP to encode the text: connect CLIP, or choose embeddings.")
    conditioning, negative = host_prompts.encoded(clip, texts), host_lora.negative_prompt_of(model)
    return conditioning, host_prompts.encoded(clip, [negative]) if negative else conditioning


def _embeddings_path(name: str) -> Path:
    return host.weights_path(name, *EMBEDDING_FOLDERS)


class Sampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="OneStepSRSampler",
            search_aliases=["tsd-sr sampler", "one step", "tiled sampler"],
            display_name="One-Step SR Sampler",
            category=CATEGORY,
            description="The step of the LoRA that the MODEL carries, for SamplerCustomAdvanced. It starts from the "
            "latent of the enlarged image and runs the model once per tile, or twice for PiSA-SR with two different "
            "strengths. Use it with BasicGuider.",
            inputs=[
                io.Int.Input(
                    "tile",
                    default=0,
                    min=0,
                    max=TSD_SR.largest_tile,
                    step=2,
                    tooltip="Tile side in latent pixels, each of which is 8 px of the image. 0: tile and overlap that "
                    "the LoRA was published with, such as 64 for TSD-SR, and 96 for PiSA-SR and OSEDiff.",
                ),
                advanced(
                    io.Int.Input(
                        "overlap",
                        default=TSD_SR.overlap,
                        min=0,
                        max=TSD_SR.largest_tile // 2,
                        step=1,
                        tooltip="Overlap of neighbouring tiles in latent pixels, where they are blended. At most half "
                        "a tile. Not used if tile is 0.",
                    ),
                ),
                io.Int.Input(
                    "batch",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="How many tiles the model processes at once. More is faster, but needs more memory.",
                ),
            ],
            outputs=[
                io.Sampler.Output(display_name="SAMPLER", tooltip="For SamplerCustomAdvanced."),
                io.Sigmas.Output(
                    display_name="SIGMAS", tooltip="From 1 to 0 in one step; the LoRA decides the real level of noise."
                ),
            ],
        )

    @classmethod
    def execute(cls, tile: int, overlap: int, batch: int) -> io.NodeOutput:
        chosen = (tile, overlap) if tile else (None, None)
        return io.NodeOutput(host_sampler.OneStepSampler(*chosen, batch), torch.tensor([1.0, 0.0]))


class Model(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id=MODEL_ID,
            search_aliases=["tsd-sr", *UNET_FAMILIES, "sr model", "super resolution"],
            display_name=COMBINER,
            category=CATEGORY,
            description="Combine a MODEL and a VAE that have a one-step LoRA, and the prompt, into one model for "
            "Upscale Image (One-Step SR).",
            inputs=[
                io.Model.Input("model", tooltip="From Apply One-Step SR LoRA."),
                io.Vae.Input("vae", tooltip="From Apply One-Step SR LoRA."),
                io.Conditioning.Input("conditioning", tooltip="From One-Step SR Prompt."),
                io.Combo.Input(
                    "recipe",
                    options=[AUTO, *FAMILIES.lora_recipes],
                    default=AUTO,
                    tooltip="auto: the recipe of the LoRA that the MODEL carries. tsd-sr: match colours by wavelet. "
                    "tsd-sr-mse: match them by AdaIN, for the published LoRA with that name.",
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="From One-Step SR Prompt, for S3Diff. Others ignore it."
                ),
            ],
            outputs=[SRModelSocket.Output(display_name="SR_MODEL", tooltip="For Upscale Image (One-Step SR).")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, vae, conditioning, recipe: str, negative=None) -> io.NodeOutput:
        opened = host_lora.open_model(model, vae, conditioning, recipe, negative)
        for warning in opened.warnings:
            host.show_on_node(cls.hidden.unique_id, warning)
        return io.NodeOutput(host.adopt(opened))
