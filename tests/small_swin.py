"""A small network of the published kind, and weights that show in its result."""

import math

import torch
from onestep_sr.sr_models.networks.swin_unet import (
    SwinUNetConfig,
)
from torch import nn

SMALL = SwinUNetConfig(
    channels=32, multipliers=(1, 2), blocks_per_level=2, swin_channels=64, window=4, mlp_ratio=2, native_size=8
)


def randomised(network: nn.Module, seed=0) -> nn.Module:
    """Every parameter, also those that start at zero or one, gets a size that shows in the result."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            noise = torch.randn(parameter.shape, generator=random)
            if name.endswith("bias_table"):
                parameter.copy_(noise)
            elif parameter.ndim > 1:
                parameter.copy_(noise / math.sqrt(fan_in))
            else:
                parameter.copy_(noise * 0.3 + (1 if name.endswith("weight") else 0))
    return network.eval().requires_grad_(False)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
