"""Encode and decode of an AutoencoderKL or VQ-f4 of any picture size within a memory budget, without seams.

The result is that of the untiled call up to rounding, by construction: every layer runs over the whole picture, in
bands of rows, before the next one begins. Modules are called as they are, so that what a host does to their weights
(patches, casts, offloading) holds here too.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import torch
from torch import Tensor, nn

from ...errors import UserError
from .layers import Convolution, Layer, channels, decoder_layers, encoder_layers
from .maps import CanvasMap
from .passes import Progress, Run, make_store, stages

__all__ = ["decode", "encode", "supports"]


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
) -> Tensor:
    """Picture (B, 3, H, W) in [-1, 1] -> the posterior's mode (B, c, H/f, W/f), unscaled; VQ: before quantising.

    budget: bytes on `device` for feature maps and the work on them; the weights, the input and the result come on
        top. What does not fit waits in host memory, or in a temporary file where `device` is the CPU.
    device, dtype: where and in which precision to compute, which the modules must be ready for; default: those of
        the first weight.
    progress: called with (done, total) after each band; what it raises ends the run and frees its memory.
    Returns the image's precision, on its device. Raises UserError for an autoencoder of another kind (see
    `supports`), a picture that does not fit it, or a budget that is too small.
    """
    latent_channels = _input_channels(decoder_layers(autoencoder))
    # Twice as many channels are the mean, which is the mode, and the logarithm of the variance.
    return _run(autoencoder, encoder_layers(autoencoder), image, latent_channels, budget, device, dtype, progress)


def decode(
    autoencoder: nn.Module,
    latent: Tensor,
    *,
    budget: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Latent (B, c, h, w), unscaled -> picture (B, 3, h f, w f), about [-1, 1], not clamped; VQ quantises first.

    Everything else is as for `encode`.
    """
    layers = decoder_layers(autoencoder)
    return _run(autoencoder, layers, latent, _output_channels(layers), budget, device, dtype, progress)


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
) -> Tensor:
    """Picture by picture: statistics are a picture's own, and a batch takes no more memory than one."""
    weight = next(autoencoder.parameters())
    device, dtype = torch.device(device or weight.device), dtype or weight.dtype
    _require_fit(layers, canvas)
    plan = stages(layers, *canvas.shape[2:])
    result = canvas.new_empty(canvas.shape[0], result_channels, *plan[-1].output)
    advance = _counter(canvas.shape[0] * sum(stage.rows_of_work for stage in plan), progress)
    for picture, target in zip(canvas.split(1), result.split(1), strict=True):
        with closing(make_store(plan, device, dtype, budget)) as store:
            Run(plan, store, advance)(CanvasMap(picture, device, dtype), CanvasMap(target, device, dtype))
    return result


def _require_fit(layers: list[Layer], canvas: Tensor) -> None:
    expected = _input_channels(layers)
    if canvas.ndim != 4 or canvas.shape[1] != expected:
        raise UserError(
            f"The VAE takes {expected} channels, but what it got has the shape {tuple(canvas.shape)}: connect the VAE "
            "that belongs to it."
        )
    if min(stages(layers, *canvas.shape[2:])[-1].output) < 1:
        size = f"{canvas.shape[3]}x{canvas.shape[2]}"
        raise UserError(f"A picture of {size} pixels is too small for the VAE: enlarge it.")


def _counter(total: int, progress: Progress | None) -> Callable[[int], None]:
    done = 0

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        if progress is not None:
            progress(done, total)

    return advance


def _input_channels(layers: list[Layer]) -> int:
    return channels(next(layer.conv for layer in layers if isinstance(layer, Convolution)))[0]


def _output_channels(layers: list[Layer]) -> int:
    return channels([layer.conv for layer in layers if isinstance(layer, Convolution)][-1])[1]
