"""Small random Stable Diffusions with a U-Net, as diffusers folders with their text encoders, from one seed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import small_sd3
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WIDTHS = (32, 64)
NARROW = (32, 32, 64, 64)


@dataclass(frozen=True)
class Kind:
    """What is told to diffusers, and to ComfyUI of the same. `encoders`: widths of the prompt's parts."""

    prediction: str = "epsilon"
    encoders: tuple[int, ...] = (32,)
    unet: dict[str, Any] = field(default_factory=lambda: {"attention_head_dim": 8})
    comfyui: dict[str, Any] = field(default_factory=lambda: {"num_heads": 8})


V2_UNET = {"attention_head_dim": (4, 8), "use_linear_projection": True}
V2 = {"unet": V2_UNET, "comfyui": {"num_head_channels": 8, "use_linear_in_transformer": True}}
XL_UNET = {"attention_head_dim": (4, 8), "use_linear_projection": True, "addition_embed_type": "text_time"}
XL_UNET |= {"addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 24 + 6 * 256}
XL_COMFYUI = {"num_head_channels": 8, "use_linear_in_transformer": True, "num_classes": "sequential"}
KINDS = {
    "1.5": Kind(),
    "2.1": Kind("v_prediction", **V2),
    "2.1-base": Kind(**V2),
    "SDXL": Kind(encoders=(16, 24), unet=XL_UNET, comfyui={**XL_COMFYUI, "adm_in_channels": 24 + 6 * 256}),
}


def write(folder: Path, kind: str = "1.5", widths: tuple[int, ...] = NARROW) -> Path:
    """`kind` is a key of KINDS, `widths` are the VAE's."""
    generator, wanted = torch.Generator().manual_seed(0), KINDS[kind]
    unet = UNet2DConditionModel(
        block_out_channels=WIDTHS,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=sum(wanted.encoders),
        norm_num_groups=32,
        **wanted.unet,
    )
    vae = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        layers_per_block=2,
        scaling_factor=0.13025 if kind == "SDXL" else 0.18215,
    )
    for part, name in ((unet, "unet"), (vae, "vae")):
        small_sd3.fill(part, generator)
        part.save_pretrained(folder / name)
    scheduler = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "steps_offset": 1,
    }
    DDPMScheduler(prediction_type=wanted.prediction, **scheduler).save_pretrained(folder / "scheduler")
    write_text_encoders(folder, wanted.encoders)
    return folder


def comfyui_config(kind: str) -> dict[str, Any]:
    """ComfyUI's configuration of the same U-Net."""
    wanted = KINDS[kind]
    config = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": WIDTHS[0],
        "channel_mult": [1, 2],
    }
    config |= {
        "num_res_blocks": [1, 1],
        "legacy": False,
        "use_spatial_transformer": True,
        "context_dim": sum(wanted.encoders),
    }
    config |= {"transformer_depth": [1, 0], "transformer_depth_middle": 1, "transformer_depth_output": [1, 1, 0, 0]}
    return config | wanted.comfyui


def write_text_encoders(folder: Path, widths: tuple[int, ...]) -> None:
    letters = [chr(code) for code in range(33, 127)]
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    ends = {"bos_token_id": len(names) - 2, "eos_token_id": len(names) - 1}
    parts: dict[str, list[str | None]] = {}
    for end, width in zip(("", "_2"), widths, strict=False):
        tokenizer = folder / f"tokenizer{end}"
        tokenizer.mkdir()
        (tokenizer / "vocab.json").write_text(json.dumps({name: index for index, name in enumerate(names)}))
        (tokenizer / "merges.txt").write_text("#version: 0.2\n")
        files = str(tokenizer / "vocab.json"), str(tokenizer / "merges.txt")
        CLIPTokenizer(*files, model_max_length=77).save_pretrained(tokenizer)
        sizes = {"hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = CLIPTextConfig(vocab_size=len(names), projection_dim=width, **sizes, **ends)
        encoder = (CLIPTextModelWithProjection if end else CLIPTextModel)(config)
        encoder.save_pretrained(folder / f"text_encoder{end}")
        parts[f"text_encoder{end}"] = ["transformers", type(encoder).__name__]
        parts[f"tokenizer{end}"] = ["transformers", "CLIPTokenizer"]
    absent = ["image_encoder", "feature_extractor", *(["safety_checker"] if len(widths) == 1 else [])]
    index = {
        "_class_name": "StableDiffusionPipeline" if len(widths) == 1 else "StableDiffusionXLPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        **parts,
        **{name: [None, None] for name in absent},
    }
    (folder / "model_index.json").write_text(json.dumps(index))
