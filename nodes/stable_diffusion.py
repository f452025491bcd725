"""Menu group `image/upscaling/One-Step SR/Stable Diffusion`: one-step LoRAs on the host's own MODEL and VAE."""

from __future__ import annotations

from pathlib import Path

import torch
from comfy_api.latest import io

from ..sr_models.checkpoints import prompt_embeddings
from ..sr_models.checkpoints.weights_file import Stamp, file_stamps
from ..sr_models.errors import UserError
from ..sr_models.families.registry import FAMILIES, read_lora
from ..sr_models.families.tsd_sr import TSD_SR
from . import host, host_lora, host_sd, host_sd3
from .schema import advanced, schema
from .upscaling import AUTO, SRModelSocket

CATEGORY = "image/upscaling/One-Step SR/Stable Diffusion"
LORA_FOLDER = "loras"
EMBEDDING_FOLDERS = (host.MODEL_FOLDER, "embeddings", LORA_FOLDER)
FROM_TEXT = "from text"
MODEL_ID = "OneStepSRModel"


class ApplyLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = host.weights_files(LORA_FOLDER)
        return schema(
            node_id="OneStepSRApplyLoRA",
            search_aliases=["tsd-sr", "tsdsr", "one step lora", "super resolution"],
            display_name="Apply One-Step SR LoRA",
            category=CATEGORY,
            description="Apply TSD-SR's LoRA to a Stable Diffusion 3 medium checkpoint: to its MODEL and to the "
            "encoder of its VAE. A LoRA that you trained is applied to the base that it was trained on, which can "
            "also be 1.5, 2.1 or SDXL. The connected MODEL and VAE are not changed.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="From a Stable Diffusion 3 medium checkpoint, or from your LoRA's base."
                ),
                io.Vae.Input("vae", tooltip="From the same checkpoint."),
                io.Combo.Input(
                    "lora",
                    options=files,
                    tooltip="A file in models/loras: TSD-SR's transformer.safetensors, your own "
                    "transformer.safetensors or unet.safetensors, or a file from onestep-sr convert.",
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
            ],
            outputs=[
                io.Model.Output(
                    display_name="MODEL", tooltip="The MODEL with the LoRA and the latent format of TSD-SR."
                ),
                io.Vae.Output(display_name="VAE", tooltip="The VAE with the LoRA on its encoder."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str | None = None, vae_lora: str | None = None, **others) -> tuple[Stamp, ...]:
        """Makes the host read files again that were replaced on disk. Linked inputs are None here."""
        paths = [_lora_path(name) for name in (lora, vae_lora) if name and name != AUTO]
        names = {name for family in FAMILIES.loras for name in family.files}
        beside = [path.with_name(name) for path in paths for name in sorted(names)]
        return file_stamps([*paths, *beside])

    @classmethod
    def execute(cls, model, vae, lora: str, vae_lora: str, strength_model: float, strength_vae: float) -> io.NodeOutput:
        read = read_lora(_lora_path(lora), None if vae_lora == AUTO else _lora_path(vae_lora))
        patched, warnings = host_lora.apply_lora(model, read, strength_model)
        host_sd.require_vae(vae, patched.get_model_object(host_sd.LATENT_FORMAT).latent_channels, str(read.base))
        host.show_on_node(cls.hidden.unique_id, " ".join(warnings))
        return io.NodeOutput(patched, host_lora.apply_vae_lora(vae, read, strength_vae))


def _lora_path(name: str) -> Path:
    return host.weights_path(name, LORA_FOLDER)


class Prompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="OneStepSRPrompt",
            search_aliases=["tsd-sr prompt", "prompt_embeds", "embeddings"],
            display_name="One-Step SR Prompt",
            category=CATEGORY,
            description="Encode TSD-SR's prompt with CLIP, or load its published embeddings, which need no text "
            "encoder.",
            inputs=[
                io.Combo.Input(
                    "embeddings",
                    options=[FROM_TEXT, *host.weights_files(*EMBEDDING_FOLDERS)],
                    default=FROM_TEXT,
                    tooltip="prompt_embeds.pt with pool_embeds.pt next to it in models/onestep_sr, or a file from "
                    "onestep-sr convert. 'from text' encodes the text below with CLIP.",
                ),
                io.String.Input(
                    "text",
                    default=TSD_SR.prompt,
                    multiline=True,
                    tooltip="TSD-SR was trained with exactly this text and spelling. Not used with embeddings.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="From the same checkpoint, for 'from text'."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="CONDITIONING", tooltip="For One-Step SR Model or BasicGuider.")
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, embeddings: str | None = None, **others) -> tuple[Stamp, ...]:
        """Makes the host read files again that were replaced on disk."""
        if embeddings in (None, FROM_TEXT):
            return ()
        path = _embeddings_path(embeddings)
        beside = [path.with_name(name) for name in (prompt_embeddings.PROMPT_FILE, prompt_embeddings.POOLED_FILE)]
        return file_stamps([path, *beside])

    @classmethod
    def execute(cls, embeddings: str, text: str, clip=None) -> io.NodeOutput:
        if embeddings != FROM_TEXT:
            read = prompt_embeddings.read_embeddings(_embeddings_path(embeddings))
            return io.NodeOutput([[read.prompt, {"pooled_output": read.pooled}]])
        if clip is None:
            raise UserError("One-Step SR Prompt needs CLIP to encode the text: connect CLIP, or choose embeddings.")
        return io.NodeOutput(clip.encode_from_tokens_scheduled(clip.tokenize(text)))


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
            description="TSD-SR's sampler for SamplerCustomAdvanced on Stable Diffusion 3. It runs the model once per "
            "tile, starting from the latent of the enlarged image, without noise. Use it with BasicGuider.",
            inputs=[
                io.Int.Input(
                    "tile",
                    default=TSD_SR.tile,
                    min=16,
                    max=TSD_SR.largest_tile,
                    step=2,
                    tooltip="Tile side in latent pixels, each of which is 8 px of the image. TSD-SR was trained on 64.",
                ),
                advanced(
                    io.Int.Input(
                        "overlap",
                        default=TSD_SR.overlap,
                        min=0,
                        max=TSD_SR.largest_tile // 2,
                        step=1,
                        tooltip="Overlap of neighbouring tiles in latent pixels, where they are blended. At most half "
                        "a tile.",
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
                io.Sigmas.Output(display_name="SIGMAS", tooltip="From 1 to 0 in one step."),
            ],
        )

    @classmethod
    def execute(cls, tile: int, overlap: int, batch: int) -> io.NodeOutput:
        return io.NodeOutput(host_sd3.OneStepSampler(tile, overlap, batch), torch.tensor([1.0, 0.0]))


class Model(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id=MODEL_ID,
            search_aliases=["tsd-sr", "sr model", "super resolution"],
            display_name="One-Step SR Model",
            category=CATEGORY,
            description="Combine a MODEL and a VAE that have TSD-SR's LoRA, and the prompt, into one model for Upscale "
            "Image (One-Step SR).",
            inputs=[
                io.Model.Input("model", tooltip="From Apply One-Step SR LoRA."),
                io.Vae.Input("vae", tooltip="From Apply One-Step SR LoRA."),
                io.Conditioning.Input("conditioning", tooltip="From One-Step SR Prompt."),
                io.Combo.Input(
                    "recipe",
                    options=list(FAMILIES.lora_recipes),
                    default=TSD_SR.name,
                    tooltip="tsd-sr: match colours by wavelet. tsd-sr-mse: match them by AdaIN, for the published LoRA "
                    "with that name.",
                ),
            ],
            outputs=[SRModelSocket.Output(display_name="SR_MODEL", tooltip="For Upscale Image (One-Step SR).")],
        )

    @classmethod
    def execute(cls, model, vae, conditioning, recipe: str) -> io.NodeOutput:
        return io.NodeOutput(host.adopt(host_lora.open_model(model, vae, conditioning, recipe)))
