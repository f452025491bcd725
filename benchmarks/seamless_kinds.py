"""The kinds of VAE that `seamless_vae.py` measures, with random weights, in diffusers and in ComfyUI."""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor

FULL_WIDTH = 128  # channels at the picture's resolution as published; some kinds have a multiple of them


class Kind(NamedTuple):
    """Channels of the latent, pixels per pixel of it, and frames per frame of it, 0 for pictures."""

    channels: int
    factor: int = 8
    frames: int = 0


KINDS = {"sd3": Kind(16), "flux2": Kind(32), "asymmetric": Kind(4), "taesd": Kind(4)}
KINDS |= {"wan": Kind(16, 8, 4), "wan22": Kind(48, 16, 4), "hunyuan-image": Kind(64, 32)}
KINDS |= {"hunyuan-video": Kind(16, 8, 4), "hunyuan-video-15": Kind(32, 16, 4)}
KINDS |= {"ltx": Kind(128, 32, 8), "ltx2": Kind(128, 32, 8)}
CLAMPED = ("wan", "wan22")  # by diffusers
ANY_SIDE = ("sd3", "flux2", "asymmetric", "taesd", "wan", "hunyuan-video")  # of pictures to encode

# By which ComfyUI recognises the kind and its width.
IN_COMFYUI = {
    "sd3": {
        "decoder.conv_in.weight": (512, 16, 3, 3),
        "encoder.down.2.downsample.conv.weight": (512, 512, 3, 3),
    },
    "flux2": {
        "decoder.conv_in.weight": (512, 32, 3, 3),
        "encoder.down.2.downsample.conv.weight": (512, 512, 3, 3),
        "post_quant_conv.weight": (32, 32, 1, 1),
        "bn.running_mean": (128,),
    },
    "taesd": {"taesd_decoder.1.weight": (64, 4, 3, 3)},
    "wan": {
        "decoder.middle.0.residual.0.gamma": (384, 1, 1, 1),
        "decoder.head.0.gamma": (96, 1, 1, 1),
        "decoder.head.2.weight": (3, 96, 3, 3, 3),
        "encoder.conv1.weight": (96, 3, 3, 3, 3),
    },
    "wan22": {
        "decoder.middle.0.residual.0.gamma": (1024, 1, 1, 1),
        "decoder.upsamples.0.upsamples.0.residual.2.weight": (1024, 1024, 3, 3, 3),
    },
    "hunyuan-image": {"decoder.conv_in.weight": (1024, 64, 3, 3)},
    "hunyuan-video": {
        "decoder.conv_in.conv.weight": (512, 16, 3, 3, 3),
        "post_quant_conv.weight": (16, 16, 1, 1, 1),
    },
    "hunyuan-video-15": {"decoder.conv_in.conv.weight": (1024, 32, 3, 3, 3)},
    "ltx": {"decoder.up_blocks.0.res_blocks.0.conv1.conv.weight": (512, 512, 3, 3, 3)},
    "ltx2": {"decoder.up_blocks.0.res_blocks.0.conv1.conv.weight": (1024, 1024, 3, 3, 3)},
}


def small_changes(autoencoder: Any) -> None:
    """Change the norms of a new network, whose weights of 1 and biases of 0 would hide errors."""
    generator = torch.Generator().manual_seed(1)
    for parameter in autoencoder.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def diffusers_vae(dtype: torch.dtype, kind: str = "sd3", width: int = FULL_WIDTH) -> Any:
    """A new autoencoder with this many channels at the picture's resolution."""
    from diffusers.utils import logging

    logging.set_verbosity_error()
    torch.manual_seed(0)
    autoencoder = video_vae(kind, width) if KINDS[kind].frames else picture_vae(kind, width)
    small_changes(autoencoder)
    return autoencoder.eval().requires_grad_(False).to(dtype)


def picture_vae(kind: str, width: int) -> Any:
    from diffusers import (
        AsymmetricAutoencoderKL,
        AutoencoderKL,
        AutoencoderKLFlux2,
        AutoencoderKLHunyuanImage,
        AutoencoderTiny,
    )

    widths = (width, 2 * width, 4 * width, 4 * width)
    if kind == "hunyuan-image":
        return AutoencoderKLHunyuanImage(3, 3, 64, (*widths, 8 * width, 8 * width), 2, 32, 384)
    if kind == "taesd":
        narrow = (width // 2,) * 4
        return AutoencoderTiny(encoder_block_out_channels=narrow, decoder_block_out_channels=narrow)
    settings: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "norm_num_groups": min(32, width // 2),
        "latent_channels": KINDS[kind].channels,
    }
    if kind == "asymmetric":  # the larger one of the two that are published
        wide = tuple(2 * each for each in widths)
        sides = {"down_block_out_channels": widths, "up_block_out_channels": wide}
        return AsymmetricAutoencoderKL(**settings, **sides, layers_per_down_block=2, layers_per_up_block=5)
    settings |= {"block_out_channels": widths, "layers_per_block": 2}
    if kind == "flux2":
        return AutoencoderKLFlux2(**settings)
    return AutoencoderKL(use_quant_conv=False, use_post_quant_conv=False, **settings)


def video_vae(kind: str, width: int) -> Any:
    from diffusers import (
        AutoencoderKLHunyuanVideo,
        AutoencoderKLHunyuanVideo15,
        AutoencoderKLLTX2Video,
        AutoencoderKLLTXVideo,
        AutoencoderKLWan,
    )

    widths: Any = (width, 2 * width, 4 * width, 8 * width)
    if kind == "wan22":
        patches: dict[str, Any] = {"patch_size": 2, "in_channels": 12, "out_channels": 12, "is_residual": True}
        return AutoencoderKLWan(width * 5 // 4, 2 * width, z_dim=48, scale_factor_spatial=16, **patches)
    if kind == "hunyuan-video":
        groups = min(32, width // 2)
        widths = (*widths[:3], 4 * width)
        autoencoder = AutoencoderKLHunyuanVideo(block_out_channels=widths, norm_num_groups=groups)
        autoencoder.use_framewise_encoding = autoencoder.use_framewise_decoding = False
        return autoencoder
    if kind == "hunyuan-video-15":
        widths = (*widths, 8 * width)
        return AutoencoderKLHunyuanVideo15(block_out_channels=widths)
    if kind == "ltx":
        widths = (*widths[:3], 4 * width)
        return AutoencoderKLLTXVideo(block_out_channels=widths, decoder_block_out_channels=widths)
    if kind == "ltx2":
        twice: Any = tuple(2 * each for each in widths)
        return AutoencoderKLLTX2Video(
            block_out_channels=twice, decoder_block_out_channels=twice[:3], decoder_causal=False
        )
    return AutoencoderKLWan(base_dim=width * 3 // 4)


@torch.no_grad()
def comfyui_vae(dtype: torch.dtype, kind: str) -> Any:
    """ComfyUI's object of the published width; runs in its interpreter and folder."""
    sys.argv = [sys.argv[0], "--cpu"]
    sys.path.insert(0, ".")
    import comfy.options  # noqa: TID251

    comfy.options.enable_args_parsing()
    import comfy.sd  # noqa: TID251
    from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE  # noqa: TID251

    metadata = None
    if kind == "ltx2":
        config = VideoVAE.get_default_config(None, 2) | {"timestep_conditioning": False}
        metadata = {"config": json.dumps({"vae": config})}
    recognised = {name: torch.empty(shape) for name, shape in IN_COMFYUI[kind].items()}
    vae = comfy.sd.VAE(sd=recognised, dtype=dtype, metadata=metadata)
    randomize(vae.first_stage_model)
    return vae


def randomize(network: torch.nn.Module) -> None:
    """Weights that keep the size of values, and norms near to 1."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in network.state_dict().items():
        if weight.is_floating_point() and weight.ndim:
            is_kernel = weight[0].numel() > 1
            weight.copy_(torch.randn(weight.shape, generator=generator))
            weight.mul_(weight[0].numel() ** -0.5 if is_kernel else 0.2)
            weight.add_("gamma" in name or ("weight" in name and not is_kernel))
            if "running_var" in name or "std-of-means" in name:
                weight.abs_().add_(0.5)


def canvas_of(direction: str, size: tuple[int, int], kind: str = "sd3", frames: int = 1) -> Tensor:
    """A picture in [-1, 1] of this height and width, or its latent; a video of these frames if the kind has them.

    The latent of a video is in the middle of its range, because diffusers clamps what it decodes.
    """
    generator = torch.Generator().manual_seed(2)
    channels, factor, time = KINDS[kind]
    if direction == "encode":
        shape = (1, 3, *((frames,) if time else ()), *size)
        return torch.rand(shape, generator=generator) * 2 - 1
    count = (1 + (frames - 1) // time,) if time else ()
    latent = torch.randn(1, channels, *count, *(side // factor for side in size), generator=generator)
    return latent / 4 if time else latent
