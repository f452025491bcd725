"""The Swin U-Net of TAD-faceir and of ResShift's model for faces: the one of `swin_unet.py` behind a stack for the LR.

The LR picture has eight times the latent's resolution, so convolutions of stride 2 bring it onto the latent's grid.
Source: ResShift (arXiv 2403.07319), whose module names it has.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from .swin_unet import Downsample, SwinUNet, SwinUNetConfig

FIRST_WIDTH = 16


@dataclass(frozen=True)
class FaceUNetConfig(SwinUNetConfig):
    """Sizes; the defaults are the published network's (118,931,604 parameters).

    `halvings`: how often the stack halves the LR picture; its result has 16 * 2^halvings channels.
    """

    latent_channels: int = 8
    condition_channels: int = FIRST_WIDTH * 2**3
    published_mask: bool = True
    halvings: int = 3


class FaceUNet(SwinUNet):
    """`SwinUNet` for a condition (B, 3, 2^halvings h, 2^halvings w), the LR picture in [-1, 1]."""

    def __init__(self, config: FaceUNetConfig | None = None):
        config = config or FaceUNetConfig()
        super().__init__(config)
        self.feature_extractor = nn.Sequential()
        channels = 3
        for level in range(config.halvings):
            width = FIRST_WIDTH * 2**level
            self.feature_extractor.extend(
                [nn.Conv2d(channels, width, 3, padding=1), nn.SiLU(), Downsample(width, 2 * width)]
            )
            channels = 2 * width

    def _enter(self, latent: Tensor, condition: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        dtype = next(self.feature_extractor.parameters()).dtype
        return super()._enter(latent, self.feature_extractor(condition.to(dtype)), timestep)
