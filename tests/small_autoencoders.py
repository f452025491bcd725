"""Autoencoders for the tests of the seamless VAE, with weights behind which no error hides."""

from functools import partial

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
)

WAN = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "temperal_downsample": [True, True]}
PATCHES = {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12}
LTX = {"latent_channels": 4, "block_out_channels": (8, 16), "layers_per_block": (1, 1, 1)}
LTX |= {"down_block_types": ("LTXVideoDownBlock3D",) * 2, "spatio_temporal_scaling": (True, False)}
LTX |= {"decoder_block_out_channels": (8, 16), "decoder_layers_per_block": (1, 1, 1)}
LTX |= {"decoder_spatio_temporal_scaling": (True, False), "decoder_inject_noise": (False,) * 3}
LTX |= {"upsample_residual": (False,) * 2, "upsample_factor": (1, 1)}
LTX_2 = {"latent_channels": 4, "block_out_channels": (8, 16, 32), "layers_per_block": (1, 1, 1, 1)}
LTX_2 |= {"down_block_types": ("LTX2VideoDownBlock3D",) * 3, "spatio_temporal_scaling": (True,) * 3}
LTX_2 |= {"downsample_type": ("spatial", "temporal", "spatiotemporal"), "decoder_causal": False}
LTX_2 |= {"decoder_block_out_channels": (8, 16), "decoder_layers_per_block": (1, 1, 1)}
LTX_2 |= {"decoder_spatio_temporal_scaling": (True, True)}
LTX_2 |= {"decoder_inject_noise": (False,) * 3, "upsample_residual": (True, True), "upsample_factor": (2, 2)}
HUNYUAN = {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "latent_channels": 4}
HUNYUAN_15 = {"block_out_channels": (8, 8, 16), "layers_per_block": 1, "latent_channels": 4}
HUNYUAN_15 |= {"spatial_compression_ratio": 4, "temporal_compression_ratio": 4}
# The network, sides of a latent and of a picture, and frames per frame of the latent.
VIDEO_KINDS = {
    "AutoencoderKLQwenImage": (partial(AutoencoderKLQwenImage, **WAN), (7, 5), (30, 21), 4),
    "AutoencoderKLWan": (partial(AutoencoderKLWan, **WAN), (7, 5), (30, 21), 4),
    "wan_2_2": (partial(AutoencoderKLWan, **WAN | PATCHES), (7, 5), (56, 40), 4),
    "ltx_video": (partial(AutoencoderKLLTXVideo, **LTX), (7, 4), (56, 40), 2),
    "ltx_video_causal": (partial(AutoencoderKLLTXVideo, decoder_causal=True, **LTX), (7, 4), (56, 40), 2),
    "ltx_2": (partial(AutoencoderKLLTX2Video, **LTX_2), (4, 3), (64, 48), 4),
    "hunyuan_video": (partial(AutoencoderKLHunyuanVideo, norm_num_groups=4, **HUNYUAN), (5, 3), (37, 22), 4),
    "hunyuan_video_15": (partial(AutoencoderKLHunyuanVideo15, **HUNYUAN_15), (7, 5), (28, 20), 4),
}


def video_network(kind):
    torch.manual_seed(0)
    return stirred(VIDEO_KINDS[kind][0]())


def stirred(autoencoder):
    """With norms and biases that are not the neutral ones of a fresh network."""
    generator = torch.Generator().manual_seed(1)
    for parameter in autoencoder.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return autoencoder.eval().requires_grad_(False)
