"""An SR model as ComfyUI's UPSCALE_MODEL, for its own upscale node and those of other packs."""

from __future__ import annotations

from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..sr_models.core.options import UpscaleOptions
from ..sr_models.core.upscale import upscale
from .host import HostedModel

SCALE = 4


class HostedUpscaler:
    """What ComfyUI and other packs use of a spandrel descriptor: `scale`, `model`, `patcher`, `to` and a call.

    The caller cuts an image into tiles of its own and blends them, so a model that starts from noise starts every tile
    from the same.
    """

    scale, input_channels, output_channels = SCALE, 3, 3
    supports_half = supports_bfloat16 = False  # a call takes and gives float32, whatever the weights have

    def __init__(self, hosted: HostedModel):
        self.hosted, self.model = hosted, nn.ModuleList(hosted.opened.modules)
        self.patcher: ModelPatcher = hosted.patchers[0]

    def to(self, device: Any = None, *_: Any, **__: Any) -> HostedUpscaler:
        """Does nothing: ComfyUI loads the weights when the model is called, and frees them when memory is needed."""
        return self

    def eval(self) -> HostedUpscaler:
        return self

    @property
    def device(self) -> torch.device:
        return self.patcher.load_device

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def __call__(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, 4 H, 4 W) in [0, 1], float32, on the image's device."""
        self.hosted.to_device(0)
        return upscale(self.hosted.model, image.float().clamp(0, 1), UpscaleOptions(SCALE))
