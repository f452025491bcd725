"""A small random Stable Diffusion with a U-Net, as a diffusers folder with one text encoder, from one seed."""

from __future__ import annotations

import json
from pathlib import Path

import small_sd3
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTH = 32  # of the prompt


def write(folder: Path, prediction: str = "epsilon") -> Path:
    """`prediction` as schedulers name it: epsilon (1.5), or v_prediction (2.1)."""
    generator = torch.Generator().manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=16,
    )
    widths = (32, 32, 64, 64)
    vae = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
    )
    for part, name in ((unet, "unet"), (vae, "vae")):
        small_sd3.fill(part, generator)
        part.save_pretrained(folder / name)
    scheduler = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    DDPMScheduler(prediction_type=prediction, **scheduler).save_pretrained(folder / "scheduler")
    _write_text_encoder(folder)
    return folder


def _write_text_encoder(folder: Path) -> None:
    letters = [chr(code) for code in range(33, 127)]
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.json").write_text(json.dumps({name: index for index, name in enumerate(names)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    files = str(tokenizer / "vocab.json"), str(tokenizer / "merges.txt")
    CLIPTokenizer(*files, model_max_length=77).save_pretrained(tokenizer)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    ends = {"bos_token_id": len(names) - 2, "eos_token_id": len(names) - 1}
    CLIPTextModel(CLIPTextConfig(vocab_size=len(names), **sizes, **ends)).save_pretrained(folder / "text_encoder")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        **{"safety_checker": [None, None], "feature_extractor": [None, None], "image_encoder": [None, None]},
    }
    (folder / "model_index.json").write_text(json.dumps(index))
