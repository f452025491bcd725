"""One picture in memory, upscaled with all that belongs to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..canvas.resize import resize
from ..core.model import SRModel, Stage
from ..core.options import UpscaleOptions
from ..core.report import Notice, Progress, ignored
from ..core.tile_policy import TilePolicy
from ..core.upscale import upscale
from ..files.picture import Picture
from .large import as_batch


def enlarge(
    model: SRModel,
    picture: Picture,
    options: UpscaleOptions,
    progress: Progress | None = None,
    notice: Notice = ignored,
    policy: TilePolicy | None = None,
    stage: Stage | None = None,
) -> Picture:
    """The picture upscaled in memory, alpha and all; values outside [0, 1] are resized bicubically and stay with it.
    Raises UserError as `upscale` does."""
    reports: dict[str, Any] = {"progress": progress, "notice": notice, "policy": policy, "stage": stage}
    result = upscale(model, as_batch(picture), options, **reports)[0]
    excess = None if picture.excess is None else resize(picture.excess[None], (result.shape[-2], result.shape[-1]))[0]
    alpha = result[3:] if picture.alpha is not None else None
    return replace(picture, pixels=result[:3], alpha=alpha, excess=excess)


def before_after(small: Picture, large: Picture) -> Picture:
    """The small picture enlarged bicubically, and the large one, side by side."""
    size = (large.pixels.shape[-2], large.pixels.shape[-1])
    before = resize(small.pixels[None], size)[0].clamp(0, 1)
    return replace(large, pixels=torch.cat([before, large.pixels], dim=-1), alpha=None, excess=None)
