"""A photo's way: fit, encode, step tile by tile, decode, restore the size (`rows`); match colours, alpha back on
(`finish`)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..canvas.resample_rows import Rows, rows_of
from .finish import BAND, finished_rows, visible
from .memory import out_of_memory_as_user_error
from .model import SRModel, Stage
from .options import DEFAULTS, UpscaleOptions
from .report import Notice, Progress, ignored
from .rows import Run, result_rows, result_size
from .tile_policy import TilePolicy

FINISHED = 2**19  # pixels whose colours, detail and alpha are computed at once


def upscale(
    model: SRModel,
    image: Tensor,
    options: UpscaleOptions = DEFAULTS,
    *,
    progress: Progress | None = None,
    notice: Notice = ignored,
    policy: TilePolicy | None = None,
    stage: Stage | None = None,
) -> Tensor:
    """Upscale pictures with one pass of the network per tile.

    A network with a scale n of its own (4 for ResShift's family) serves every other scale s too. Above n the picture
    is first enlarged bicubically by s/n. Below n the network runs on the picture as it is and its result is shrunk
    (bicubic, antialiased): that is the work of scale n, and shrinking the picture first would save time by losing
    what it holds. Networks of scale 1 (Stable Diffusion) run at the result's size, so that their work falls with it,
    down to the shortest side that the recipe allows.

    Args:
        image: (B, 3 or 4, H, W) float32 in [0, 1], at least 8 px a side; a fourth channel is alpha,
            which is enlarged bicubically on its own. Colours under alpha 0 have no influence, and a grey picture
            (R = G = B) stays grey.
        options: size, tiles, colours, seed, strength and wrap. Where memory runs out, the batch is halved,
            then the tile.
        progress: called after each tile with (tiles done, tiles in all, a rough picture (3, h, w) in
            [0, 1] that grows). Whatever it raises ends the run.
        notice: called with a sentence where the run differs from what was asked.
        stage: called with (done, total) parts of other work: resizing a large picture, and encoding and decoding by an
            autoencoder. Whatever it raises ends the run.
        policy: of a run of several calls with one model, so that memory that ran out once is not tried again;
            None is for this call alone.

    Returns:
        (B, 3 or 4, round(scale H), round(scale W)), or the target's size: float32 in [0, 1], on the image's device.

    Raises:
        UserError: for a size, scale, tile, overlap or detail out of bounds, an unknown colour match, values that are
            not finite in the picture or from the network, prompts for another number of pictures, or too little memory.
    """
    size, method = result_size(image, options), options.color or model.recipe.color
    model.require_pictures(len(image))
    way, options = options.continued(image.shape[-2], image.shape[-1])
    image, model = visible(way.continued(image)), model.at_detail(options.detail)
    policy = policy or TilePolicy()
    with out_of_memory_as_user_error():
        # Channels last, so that a host that keeps pictures that way need not copy it.
        shape = (len(image), image.shape[1], *size)
        result = torch.empty(shape, device=image.device, memory_format=torch.channels_last)
        for index, picture in enumerate(image.split(1)):
            run = Run(model, options, policy, _for_picture(progress, index, len(image)), notice, stage)
            [rows] = result_rows(run, picture[:, :3], index=index)
            finished = finished_rows(rows_of(rows), picture, way.whole_result, method, options.strength)
            _fill(result[index], way.closed(finished))
    return result


def _fill(result: Tensor, rows: Rows) -> None:
    """Compute the rows of a result (C, H, W), a part at a time where they are many: each takes several copies."""
    height, width = result.shape[-2:]
    count = max(BAND, FINISHED // width)
    for top in range(0, height, count):
        bottom = min(top + count, height)
        result[:, top:bottom] = rows(top, bottom)


def _for_picture(progress: Progress | None, index: int, count: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total, preview: progress(index * total + done, count * total, preview)
