"""Encode and decode pictures of any size, seamlessly and within a memory budget: with an AutoencoderKL, VQ-f4, TAESD,
Hunyuan Image, or a network for videos: Qwen-Image, Wan, HunyuanVideo, LTX.

The result equals the untiled one up to rounding, by construction: every layer runs over the whole picture, in bands
of rows, before the next layer starts. Modules whose weights a host changes (patches, casts, offloading) are called
unchanged, so that this keeps working; of others, some convolutions are computed in a cheaper form (`convolve`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...canvas.resample_rows import rows_of
from ...canvas.wrap import Continuation, Wrap
from ...errors import UserError
from .describe import SUPPORTED, decoder_layers, encoder_layers, is_tiny
from .frames import FramesForward
from .layers import Convolution, Layer, Local, VideoConvolution, channels, is_causal
from .maps import CanvasMap
from .passes import Progress
from .plan import comfortable_budget, make_store, needed_frames, stages
from .refusals import refusal

WRAPPED = 16  # latent pixels that continue a canvas
PICTURE, VIDEO = 4, 5  # dimensions of a canvas

__all__ = [
    "SUPPORTED",
    "decode",
    "decoding_workspace",
    "encode",
    "is_tiny",
    "refusal",
    "supports",
    "workspace",
    "wrapped",
]


def supports(autoencoder: nn.Module) -> bool:
    """Whether `encode` and `decode` can run this network."""
    try:
        return bool(encoder_layers(autoencoder) and decoder_layers(autoencoder))
    except UserError:
        return False


def encode(
    autoencoder: nn.Module,
    image: Tensor,
    *,
    budget: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    spill: Path | None = None,
) -> Tensor:
    """Picture (B, 3, H, W) in [-1, 1] -> the posterior's mode (B, c, H/f, W/f), unscaled; VQ: before quantising.

    A network for videos also takes one, (B, 3, T, H, W) -> (B, c, 1 + (T - 1) // 4, H/f, W/f); for LTX, 8 in place of
    4. Frames that are too few for another one of the latent are left out. Flux.2 in ComfyUI: the mode in normalised 2x2
    patches. Rows and columns that fill no patch are left out, also in the picture (Wan 2.2, LTX).

    budget: bytes on `device` for feature maps and work on them; weights, input and result are not included. What
        does not fit is kept in host memory, or in a temporary file if `device` is the CPU.
    device, dtype: where and in which precision to compute, which the modules must be prepared for; defaults to those
        of the first weight.
    progress: called with (done, total) after each band; an exception that it raises ends the run and frees its memory.
    spill: the folder for the temporary file; by default the system's (see `spill_folder`).
    Returns a tensor with the image's dtype and device. Raises UserError for an unsupported autoencoder (see
    `supports`), a picture that does not fit it, or a budget that is too small.
    """
    latent_channels = _input_channels(decoder_layers(autoencoder))
    # The encoder returns twice as many channels: the mean (which is the mode), then the log variance.
    return _run(
        autoencoder, encoder_layers(autoencoder), image, latent_channels, budget, device, dtype, progress, spill
    )


def decode(
    autoencoder: nn.Module,
    latent: Tensor,
    *,
    budget: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    spill: Path | None = None,
) -> Tensor:
    """Latent (B, c, h, w), unscaled -> picture (B, 3, h f, w f), about [-1, 1], not clamped; VQ quantises first.

    A network for videos also takes a video's latent, (B, c, T, h, w) -> (B, 3, 4 T - 3, h f, w f); LTX: 8 T - 7.

    All other arguments are the same as for `encode`.
    """
    layers = decoder_layers(autoencoder)
    return _run(autoencoder, layers, latent, _output_channels(layers), budget, device, dtype, progress, spill)


def wrapped(
    function: Callable[..., Tensor], wrap: Wrap, autoencoder: nn.Module, canvas: Tensor, **options: Any
) -> Tensor:
    """`encode` or `decode` of a canvas whose borders continue at the opposite side; see `canvas.wrap`.

    function: `encode` or `decode`; `canvas` and `options` are its arguments. wrap: the sides, "none" for none. Returns
    and raises what the function does.
    """
    layers = encoder_layers(autoencoder) if function is encode else decoder_layers(autoencoder)
    size = (canvas.shape[-2], canvas.shape[-1])
    result = stages(layers, *size)[-1].output
    if wrap == "none" or min(result) < 1:
        return function(autoencoder, canvas, **options)
    way = Continuation.of(wrap, size, result, WRAPPED * max(1, size[0] // result[0]))
    found = function(autoencoder, way.continued(canvas), **options)
    return way.closed(rows_of(found))(0, result[0])


def workspace(autoencoder: nn.Module, height: int, width: int, dtype: torch.dtype | None = None) -> int:
    """The budget in bytes with which `encode` and `decode` of a picture of this size lose little time.

    It is much smaller than the memory for all feature maps. Raises UserError for an unsupported autoencoder.
    """
    dtype = dtype or next(autoencoder.parameters()).dtype
    encoder = stages(encoder_layers(autoencoder), height, width)
    return max(comfortable_budget(encoder, dtype), decoding_workspace(autoencoder, *encoder[-1].output, dtype))


def decoding_workspace(autoencoder: nn.Module, height: int, width: int, dtype: torch.dtype | None = None) -> int:
    """`workspace` of `decode` alone, for a latent of this size."""
    dtype = dtype or next(autoencoder.parameters()).dtype
    return comfortable_budget(stages(decoder_layers(autoencoder), height, width), dtype)


@torch.no_grad()
def _run(
    autoencoder: nn.Module,
    layers: list[Layer],
    canvas: Tensor,
    result_channels: int,
    budget: int,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    progress: Progress | None,
    spill: Path | None,
) -> Tensor:
    """One picture at a time: each has its own statistics, and a batch needs no more memory than one picture."""
    weight = next(autoencoder.parameters())
    device, dtype = torch.device(device or weight.device), dtype or weight.dtype
    _require_fit(layers, canvas)
    frames = canvas.unsqueeze(2) if canvas.ndim == PICTURE else canvas
    _, _, count, height, width = frames.shape
    frames = frames[:, :, : needed_frames(stages(layers, height, width, count))]
    plan = stages(layers, height, width, frames.shape[2])
    result = canvas.new_empty(frames.shape[0], result_channels, plan[-1].frames_out, *plan[-1].output)
    advance = _counter(frames.shape[0] * sum(stage.rows_of_work for stage in plan), progress)
    for picture, target in zip(frames.split(1), result.split(1), strict=True):
        sources, results = ([CanvasMap(frame, device, dtype) for frame in one.unbind(2)] for one in (picture, target))
        with closing(make_store(plan, device, dtype, budget, spill)) as store:
            FramesForward(plan, store, advance).video(sources, results)
    return result.squeeze(2) if canvas.ndim == PICTURE else result


def _require_fit(layers: list[Layer], canvas: Tensor) -> None:
    expected = _input_channels(layers)
    dimensions = (PICTURE, VIDEO) if any(map(_runs_over_frames, layers)) else (PICTURE,)
    if canvas.ndim not in dimensions or canvas.shape[1] != expected:
        raise UserError(
            f"The VAE expects {expected} channels, but the input has the shape {tuple(canvas.shape)}: connect the VAE "
            "that belongs to it."
        )
    if any(stage.is_too_small for stage in stages(layers, *canvas.shape[-2:])):
        size = f"{canvas.shape[-1]}x{canvas.shape[-2]}"
        raise UserError(f"A picture of {size} pixels is too small for the VAE: enlarge it first.")


def _runs_over_frames(layer: Layer) -> bool:
    return isinstance(layer, VideoConvolution) or (isinstance(layer, Convolution) and is_causal(layer.conv))


def _counter(total: int, progress: Progress | None) -> Callable[[int], None]:
    done = 0

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        if progress is not None:
            progress(done, total)

    return advance


def _input_channels(layers: list[Layer]) -> int:
    return next(_widths(layers))[0]


def _output_channels(layers: list[Layer]) -> int:
    return next(_widths(reversed(layers)))[1]


def _widths(layers: Iterable[Layer]) -> Iterator[tuple[int, int]]:
    for layer in layers:
        match layer:
            case Convolution(conv) | VideoConvolution(conv):
                yield channels(conv)
            case Local(widths=widths):
                yield widths
