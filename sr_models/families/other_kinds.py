"""Other kinds of weights files: what they are, and where to use them."""

from __future__ import annotations

from dataclasses import dataclass

from ..checkpoints.conditions import All, AnyOf, Condition, Has, HasPrefix, HasSuffix, Kind, Not
from . import resshift


@dataclass(frozen=True)
class OtherKind:
    """A kind of file that is not for this pack. In messages, `title` follows "is", and `advice` a colon."""

    title: str
    condition: Condition
    advice: str


_UPSCALERS = AnyOf(
    Has("conv_first.weight"),  # ESRGAN's new format, SwinIR, HAT, DAT
    All(Has("model.0.weight"), HasPrefix("model.1.sub.")),  # ESRGAN's old format
    Has("body.0.weight", "body.1.weight", "body.2.weight"),  # Real-ESRGAN's compact network
    All(HasPrefix("conv_1."), HasPrefix("block_1.c1_r.")),  # SPAN
    All(Has("feats.0.weight"), HasPrefix("feats.1.")),  # PLKSR
)

# The first match is used, so specific kinds come before general ones.
OTHER_KINDS = (
    OtherKind(
        "the VQ-f4 autoencoder, which is not an upscaler",
        resshift.AUTOENCODER,
        "choose a TAD-SR, SinSR or ResShift file, and this file as its autoencoder",
    ),
    OtherKind(
        "a GGUF file, which contains a quantized model",
        Kind("gguf"),
        "choose a safetensors file, or load it with a GGUF loader and connect its MODEL",
    ),
    OtherKind("an upscaler of another kind, such as ESRGAN", _UPSCALERS, "choose it in Load Upscale Model"),
    OtherKind(
        "a LoRA that is not for upscaling",
        AnyOf(
            HasPrefix("lora_unet_"),
            HasPrefix("lora_te"),
            HasPrefix("lora_transformer_"),
            HasSuffix(".lora_A.weight"),
            HasSuffix(".lora_down.weight"),
            HasSuffix(".lora.down.weight"),
            HasSuffix("_lora.down.weight"),
        ),
        "choose it in Load LoRA",
    ),
    OtherKind(
        "a ControlNet",
        AnyOf(HasPrefix("control_model."), HasPrefix("controlnet_"), HasPrefix("input_hint_block.")),
        "choose it in Load ControlNet Model",
    ),
    OtherKind(
        "a Stable Diffusion checkpoint",
        All(HasPrefix("model.diffusion_model."), HasPrefix("first_stage_model.")),
        "choose it in Load Checkpoint, or as --base (a file for Stable Diffusion 3, a folder for others)",
    ),
    OtherKind(
        "a diffusion model without the rest of its checkpoint",
        AnyOf(
            HasPrefix("model.diffusion_model."),
            HasPrefix("diffusion_model."),
            All(HasPrefix("down_blocks."), Has("conv_in.weight", "conv_out.weight")),
            All(HasPrefix("joint_blocks."), Has("x_embedder.proj.weight")),
            All(Has("time_embed.0.weight", "input_blocks.0.0.weight"), Not(resshift.NETWORK, "is ResShift's")),
            HasPrefix("transformer_blocks."),
            HasPrefix("double_blocks."),
        ),
        "choose it in Load Diffusion Model, or its whole diffusers folder as --base",
    ),
    OtherKind(
        "a VAE",
        AnyOf(Has("encoder.conv_in.weight", "decoder.conv_out.weight"), HasPrefix("taesd_"), HasPrefix("decoder.up.")),
        "choose it in Load VAE",
    ),
    OtherKind(
        "a text encoder",
        AnyOf(HasPrefix("text_model."), HasPrefix("encoder.block.0.layer.0."), HasPrefix("text_encoders.")),
        "choose it in Load CLIP",
    ),
    OtherKind(
        "prompt embeddings", Has("prompt_embeds", "pool_embeds"), "choose it in One-Step SR Prompt, or as --embeddings"
    ),
    OtherKind(
        "a textual inversion",
        AnyOf(Has("emb_params"), HasPrefix("string_to_param/"), Has("clip_l", "clip_g")),
        "copy it into models/embeddings and name it in a prompt",
    ),
)
