"""Open Stable Diffusion 3 from a diffusers folder, or from a single checkpoint file in Stability's format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..checkpoints.low_rank import under
from ..checkpoints.weights_file import read_weights
from ..errors import UserError, reason_of
from ..families.bases import SD3_MEDIUM
from .folder import open_part

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SD3Transformer2DModel

LATENT_CHANNELS = 16
HEAD_WIDTH = 64
SCALING = 1.5305
TRANSFORMER_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."


def open_networks(base: Path, dtype: torch.dtype) -> tuple[SD3Transformer2DModel, AutoencoderKL]:
    """Transformer and VAE of a diffusers folder or a checkpoint file, frozen, on the CPU.

    Raises UserError if files are missing, broken or of another model.
    """
    return _open_folder(base, dtype) if base.is_dir() else _open_file(base, dtype)


def _open_folder(base: Path, dtype: torch.dtype) -> tuple[SD3Transformer2DModel, AutoencoderKL]:
    from diffusers import AutoencoderKL, SD3Transformer2DModel

    for part in ("transformer", "vae"):
        if not (base / part / "config.json").is_file():
            raise UserError(
                f"{base} is not a diffusers folder of {SD3_MEDIUM} (it lacks {part}/config.json): choose the folder "
                "that contains model_index.json, or a single-file checkpoint."
            )
    try:
        transformer = open_part(SD3Transformer2DModel, base, "transformer", dtype)
        vae = open_part(AutoencoderKL, base, "vae", dtype)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{base} cannot be read as {SD3_MEDIUM} ({reason}): download it again.") from error
    return transformer.eval().requires_grad_(False), vae.eval().requires_grad_(False)


def _open_file(path: Path, dtype: torch.dtype) -> tuple[SD3Transformer2DModel, AutoencoderKL]:
    from diffusers import AutoencoderKL, SD3Transformer2DModel
    from diffusers.loaders.single_file_utils import (
        convert_ldm_vae_checkpoint,
        convert_sd3_transformer_checkpoint_to_diffusers,
    )

    file = read_weights(path)
    transformer = under(file.tensors, TRANSFORMER_PREFIX)
    vae = under(file.tensors, VAE_PREFIX)
    if "joint_blocks.0.x_block.attn.qkv.weight" not in transformer:
        raise UserError(
            f"{path.name} does not contain a Stable Diffusion 3 transformer: choose a checkpoint of {SD3_MEDIUM}, or "
            "of the base that the LoRA is for."
        )
    if "encoder.conv_in.weight" not in vae:
        raise UserError(
            f"{path.name} contains a transformer without its VAE: choose a complete checkpoint of {SD3_MEDIUM}, "
            "or a diffusers folder."
        )
    with torch.device("meta"):
        network = SD3Transformer2DModel(**_transformer_config(transformer))
        autoencoder = AutoencoderKL(**vae_config(vae, SCALING))
    try:
        assign(network, convert_sd3_transformer_checkpoint_to_diffusers(dict(transformer)), dtype)
        assign(autoencoder, convert_ldm_vae_checkpoint(dict(vae), autoencoder.config), dtype)
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"{path.name} is not a complete Stable Diffusion 3 checkpoint ({reason_of(error)}): download it again."
        ) from error
    return network, autoencoder


def _transformer_config(tensors: dict[str, Tensor]) -> dict:
    """diffusers' configuration of a checkpoint's transformer, from the tensors' shapes."""
    width = tensors["x_embedder.proj.weight"].shape[0]
    blocks = {int(name.split(".")[1]) for name in tensors if name.startswith("joint_blocks.")}
    dual = sorted(i for i in blocks if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in tensors)
    return {
        "num_layers": max(blocks) + 1,
        "num_attention_heads": width // HEAD_WIDTH,
        "attention_head_dim": HEAD_WIDTH,
        "joint_attention_dim": tensors["context_embedder.weight"].shape[1],
        "caption_projection_dim": tensors["context_embedder.weight"].shape[0],
        "pooled_projection_dim": tensors["y_embedder.mlp.0.weight"].shape[1],
        "pos_embed_max_size": round(tensors["pos_embed"].shape[1] ** 0.5),
        "qk_norm": "rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in tensors else None,
        "dual_attention_layers": tuple(dual),
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "sample_size": 128,
        "patch_size": 2,
    }


def vae_config(tensors: dict[str, Tensor], scaling: float) -> dict:
    """diffusers' configuration of a checkpoint's VAE, from the tensors' shapes."""
    levels = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.down."))
    widths = [tensors[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
    return {
        "block_out_channels": tuple(widths),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": 2,
        "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
        "scaling_factor": scaling,
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
    }


def assign(network: nn.Module, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Give a network built on the meta device its weights, frozen. Raises RuntimeError for other names or shapes."""
    network.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors.items()}, assign=True)
    network.eval().requires_grad_(False)
