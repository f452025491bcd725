"""Other kinds of weights files: what they are, and where to use them."""

from __future__ import annotations

from dataclasses import dataclass

from ..checkpoints.conditions import All, AnyOf, Condition, Has, HasPrefix, HasSuffix, Kind, Not, Shape
from . import adcsr, resshift, tad_faceir


@dataclass(frozen=True)
class OtherKind:
    """A kind of file that is not for this pack. In messages, `title` follows "is", and `advice` a colon."""

    title: str
    condition: Condition
    advice: str


UPSCALERS = {
    "ESRGAN or Real-ESRGAN": AnyOf(
        All(Has("conv_first.weight"), HasPrefix("body.0.rdb1.")),
        All(Has("model.0.weight"), HasPrefix("model.1.sub.")),  # the old format
    ),
    "Real-ESRGAN's compact network": Has("body.0.weight", "body.1.weight", "body.2.weight"),
    "HAT": All(Has("conv_first.weight"), HasPrefix("layers.0.residual_group.overlap_attn.")),
    "SwinIR": All(Has("conv_first.weight"), HasPrefix("layers.0.residual_group.blocks.0.attn.")),
    "DAT": All(Has("conv_first.weight"), HasPrefix("before_RG.")),
    "EDSR": AnyOf(
        All(Has("conv_first.weight"), HasPrefix("body.0.conv1.")),
        All(Has("head.0.weight", "body.0.body.0.weight"), HasPrefix("tail.")),
    ),
    "SPAN": All(HasPrefix("conv_1."), HasPrefix("block_1.c1_r.")),
    "PLKSR": All(Has("feats.0.weight"), HasPrefix("feats.1.")),
}
CHECKPOINTS = {
    "a Stable Diffusion 3": ("joint_blocks.", "as --base"),
    "a Flux": ("double_blocks.", ""),
    "an SDXL": ("label_emb.0.0.weight", "its diffusers folder as --base"),
    "a Stable Diffusion": ("", "as --base (a file of Stable Diffusion 3 or 2.1, a diffusers folder of others)"),
}


def _checkpoint(title: str, part: str, base: str) -> OtherKind:
    network, rest = (
        HasPrefix(f"model.diffusion_model.{part}"),
        HasPrefix("first_stage_model.", "vae.", "text_encoders."),
    )
    advice = f"choose it in Load Checkpoint, or {base}" if base else "choose it in Load Checkpoint"
    return OtherKind(f"{title} checkpoint", All(network, rest), advice)


# The first match is used, so specific kinds come before general ones.
OTHER_KINDS = (
    OtherKind(
        "a ResShift model for inpainting, which is not an upscaler",
        All(resshift.NETWORK, HasPrefix(resshift.STACK)),
        "choose a TAD-SR, SinSR or ResShift x4 file, or a model for faces",
    ),
    OtherKind(
        f"the {resshift.F4.title}, which is not an upscaler",
        resshift.F4.condition,
        "choose a TAD-SR, SinSR or ResShift file, and this file as its autoencoder",
    ),
    OtherKind(
        f"the {tad_faceir.F8.title}",
        tad_faceir.F8.condition,
        "choose TAD-faceir.pth or ResShift's model for faces, and this file as its autoencoder",
    ),
    OtherKind(
        "AdcSR's half decoder",
        adcsr.HALF,
        "choose net_params_200.pkl, and this file as its autoencoder",
    ),
    OtherKind(
        "a GGUF file, which contains a quantized model",
        Kind("gguf"),
        "choose a safetensors file, or load it with a GGUF loader and connect its MODEL",
    ),
    OtherKind(
        "a face restoration model (GFPGAN, CodeFormer or RestoreFormer)",
        AnyOf(
            HasPrefix("stylegan_decoder.", "fuse_convs_dict.", "vqvae.encoder."),
            All(resshift.VQ, Shape("quantize.embedding.weight", 1024, 256)),
        ),
        "choose it in a node for face restoration",
    ),
    *(
        OtherKind(f"an upscaler of another kind ({name})", condition, "choose it in Load Upscale Model")
        for name, condition in UPSCALERS.items()
    ),
    OtherKind(
        "an upscaler of another kind, such as ESRGAN", Has("conv_first.weight"), "choose it in Load Upscale Model"
    ),
    OtherKind(
        "an IP-Adapter",
        HasPrefix("ip_adapter.", "ip_adapter/"),
        "choose it in a node for IP-Adapters",
    ),
    OtherKind(
        "a LyCORIS file (LoHa, LoKr and the like), which is not for upscaling",
        HasSuffix(".hada_w1_a", ".lokr_w1", ".lokr_w1_a", ".oft_blocks", ".dora_scale"),
        "choose it in Load LoRA",
    ),
    OtherKind(
        "a LoRA that is not for upscaling",
        AnyOf(
            HasPrefix("lora_unet_", "lora_te", "lora_transformer_"),
            HasSuffix(".lora_A.weight", ".lora_down.weight", ".lora.down.weight", "_lora.down.weight"),
        ),
        "choose it in Load LoRA",
    ),
    OtherKind(
        "a ControlNet or T2I-Adapter",
        AnyOf(
            HasPrefix("control_model.", "controlnet_", "input_hint_block.", "adapter.body."),
            Has("body.0.block1.weight", "conv_in.weight"),
            Has("lora_controlnet"),
        ),
        "choose it in Load ControlNet Model",
    ),
    *(_checkpoint(title, *details) for title, details in CHECKPOINTS.items()),
    OtherKind(
        "a diffusion model without the rest of its checkpoint",
        AnyOf(
            HasPrefix("model.diffusion_model.", "diffusion_model.", "transformer_blocks.", "double_blocks."),
            All(HasPrefix("down_blocks."), Has("conv_in.weight", "conv_out.weight")),
            All(HasPrefix("joint_blocks."), Has("x_embedder.proj.weight")),
            All(Has("time_embed.0.weight", "input_blocks.0.0.weight"), Not(resshift.NETWORK, "is ResShift's")),
        ),
        "choose it in Load Diffusion Model, or its whole diffusers folder as --base (GDPO-SR needs its folder vae "
        "next to its folder unet)",
    ),
    OtherKind(
        "a VAE",
        AnyOf(
            Has("encoder.conv_in.weight", "decoder.conv_out.weight"),
            HasPrefix("first_stage_model.", "taesd_", "decoder.up.", "decoder.layers."),
        ),
        "choose it in Load VAE",
    ),
    OtherKind(
        "a CLIP vision model",
        HasPrefix("vision_model.", "visual."),
        "choose it in Load CLIP Vision",
    ),
    OtherKind(
        "a text encoder",
        HasPrefix(
            *("text_model.", "encoder.block.0.layer.0.", "text_encoders.", "transformer.resblocks."),
            "model.layers.0.self_attn.",  # language models that newer diffusion models use
        ),
        "choose it in Load CLIP",
    ),
    OtherKind(
        "prompt embeddings", Has("prompt_embeds", "pool_embeds"), "choose it in One-Step SR Prompt, or as --embeddings"
    ),
    OtherKind(
        "a textual inversion",
        AnyOf(Has("emb_params"), Has("clip_l", "clip_g"), HasPrefix("string_to_param/", "<")),
        "copy it into models/embeddings and name it in a prompt",
    ),
)
