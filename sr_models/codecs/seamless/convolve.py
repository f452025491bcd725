"""Convolutions of a band of rows.

Where a module only computes with its own weights, some are replaced by smaller ones with the same result.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import groupby, product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import changes_weights, is_causal, unwrapped

Weights = tuple[Tensor, Tensor | None]
WEIGHTS_AT_ONCE = 2**22


def convolved(conv: nn.Module, band: Tensor, above: int, below: int, before: Sequence[Tensor] = ()) -> Tensor:
    """The convolution of a band: (1, C, above + h + below, W) -> (1, D, h, W).

    above, below: the rows of the band, 0 or 1, that are only its surroundings. before: the same rows of up to two
    frames before, for a causal convolution. Those before the first are zeros: their part of the weights is left out.
    """
    own = own_weights(conv, band)
    if own is None:
        return without_halo(_called(conv, band, before), above, below)
    weight, bias = own
    weight = weight[:, :, -1 - len(before) :] if is_causal(conv) else weight.unsqueeze(2)
    height, width = (side // 2 for side in weight.shape[3:])
    inside = above and below  # nothing is padded or computed for the rows around the band
    result = _sum_over_frames([*before, band], weight, bias, (1, 1), (0 if inside else height, width))
    return result if inside else without_halo(result, above, below)


def convolved_frames(conv: nn.Module, frames: list[Tensor], padding: str, above: int = 0, below: int = 0) -> Tensor:
    """The convolution of three frames' bands, padded at the borders: (1, C, rows, W) each -> (1, D, h, W).

    above, below: the rows of the result, 0 or 1, that the bands only surround. Some of the frames may be one tensor.
    A few filters at a time, because their weights are copied.
    """
    own = own_weights(conv, frames[0])
    if own is None:
        stack = torch.stack(frames, 2)
        outside = F.pad(stack, (1, 1, 1, 1, 0, 0), mode=padding) if padding == "replicate" else stack
        return without_halo(conv(outside)[:, :, 0], above, below)
    weight, bias = own
    rows = 0 if above and below else 1
    if padding != "zeros":
        outside = {id(frame): F.pad(frame, (1, 1, rows, rows), mode=padding) for frame in frames}
        frames = [outside[id(frame)] for frame in frames]
    options = unwrapped(conv).stride[1:], (rows, 1) if padding == "zeros" else (0, 0)
    at_once = max(1, WEIGHTS_AT_ONCE // weight[0, :, 0].numel())
    biases = [None] * len(weight) if bias is None else bias.split(at_once)
    pairs = zip(weight.split(at_once), biases, strict=False)
    parts = [_sum_over_frames(frames, part, shift, *options) for part, shift in pairs]
    result = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    return without_halo(result, above, below) if rows else result


def _sum_over_frames(
    frames: Sequence[Tensor], weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """The convolution over frames (1, C, h, W) with weight (D, C, frames, 3, 3), quicker than one in three dimensions.

    The weights of neighbours that are one tensor are added.
    """
    if frames[0].dtype != torch.float32 and len(frames) > 1:  # sums would round
        weight = weight.transpose(1, 2).flatten(1, 2)  # frames take the place of channels
        return _conv2d(torch.cat(list(frames), 1), weight, bias, stride, padding)
    pairs = zip(frames, weight.unbind(2), strict=True)
    groups = [tuple(zip(*group, strict=True)) for _, group in groupby(pairs, lambda pair: id(pair[0]))]
    terms = (
        _conv2d(same[0], reduce(torch.add, weights), None if index else bias, stride, padding)
        for index, (same, weights) in enumerate(groups)
    )
    return reduce(Tensor.add_, terms)


def _conv2d(
    band: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """On a CPU, weights are copied into the band's layout; a small band takes theirs instead, and then its own."""
    pixels = band.shape[2] * band.shape[3]
    if band.device.type == "cpu" and 2 * pixels * sum(weight.shape[:2]) < weight.numel():
        result = F.conv2d(band.contiguous(), weight, bias, stride, padding)
        return result.contiguous(memory_format=torch.channels_last)
    return F.conv2d(band, weight, bias, stride, padding)


def _called(conv: nn.Module, band: Tensor, before: Sequence[Tensor]) -> Tensor:
    if not is_causal(conv):
        return conv(band)
    frame = band.unsqueeze(2)
    return (conv(frame, torch.stack(list(before), 2)) if before else conv(frame)).squeeze(2)


def enlarged(conv: nn.Module, small: Tensor, above: int, below: int) -> Tensor:
    """The 3x3 convolution of the band x2 (nearest neighbour): (1, C, above + h + below, W) -> (1, D, 2h, 2W).

    above, below: the rows of the band, 0 or 1, that are only its surroundings.
    """
    own = own_weights(conv, small) if small.dtype == torch.float32 else None  # sums of weights round in half precision
    if own is not None:
        return _enlarged_by_corners(*own, small, above, below)
    large = doubled(small)[:, :, above : 2 * small.shape[2] - below]  # a row becomes two, of which one is needed
    return convolved(conv, large, above, below)


def _enlarged_by_corners(weight: Tensor, bias: Tensor | None, small: Tensor, above: int, below: int) -> Tensor:
    """Each pixel of a 2x2 block sees only 2x2 different pixels, some several times: 4 instead of 9 products."""
    height, width = small.shape[2] - above - below, small.shape[3]
    outside = 2 - above - below  # of the rows around the band, how many the convolution pads
    result = small.new_empty(1, height, 2, width, 2, weight.shape[0])
    for row, column in product(range(2), repeat=2):
        corner = F.conv2d(small, _corner(weight, row, column), bias, padding=(min(outside, 1), 1))
        top = row + (above if outside else 0)
        corner = corner[:, :, top : top + height, column : column + width]
        result[:, :, row, :, column] = corner.permute(0, 2, 3, 1)
    return result.reshape(1, 2 * height, 2 * width, -1).permute(0, 3, 1, 2)


def _corner(weight: Tensor, row: int, column: int) -> Tensor:
    """The 3x3 kernel on a picture x2, as the 2x2 kernel on the picture for one pixel of each block."""
    first, second, third = weight.unbind(2)
    rows = torch.stack([first + second, third] if row else [first, second + third], 2)
    first, second, third = rows.unbind(3)
    return torch.stack([first + second, third] if column else [first, second + third], 3)


def own_weights(module: nn.Module, like: Tensor) -> Weights | None:
    """Weight and bias of a convolution, if a call only computes with them on a band like this one: no adapter, host or
    hook changes, casts or loads them."""
    conv: Any = module
    if (
        not isinstance(conv, nn.Conv2d | nn.Conv3d)
        or "forward" in vars(conv)
        or conv._forward_pre_hooks
        or conv._forward_hooks
    ):
        return None
    known = is_causal(conv) or type(conv).forward is nn.Conv2d.forward or hasattr(conv, "comfy_cast_weights")
    if not known or changes_weights(conv) or (conv.weight.device, conv.weight.dtype) != (like.device, like.dtype):
        return None
    return conv.weight, conv.bias


def without_halo(band: Tensor, above: int, below: int) -> Tensor:
    return band[:, :, above : band.shape[2] - below]


def doubled(band: Tensor) -> Tensor:
    """Nearest-neighbour x2: (1, C, h, w) -> (1, C, 2h, 2w), like interpolate(mode="nearest"), in any precision."""
    pixels = band.permute(0, 2, 3, 1)
    _, height, width, depth = pixels.shape
    pixels = pixels[:, :, None, :, None].expand(1, height, 2, width, 2, depth)
    return pixels.reshape(1, 2 * height, 2 * width, depth).permute(0, 3, 1, 2)


def padded(band: Tensor) -> Tensor:
    """Pad a row of zeros below, which only the map's last band uses, and a column on the right."""
    return F.pad(band.permute(0, 2, 3, 1), (0, 0, 0, 1, 0, 1)).permute(0, 3, 1, 2)


def rewidened(band: Tensor, width: int) -> Tensor:
    """Each channel repeated, or groups of channels averaged: (1, C, rows, W) -> (1, width, rows, W)."""
    if width >= band.shape[1]:
        return band.repeat_interleave(width // band.shape[1], 1)
    return band.unflatten(1, (width, -1)).mean(2)


def positions(band: Tensor, heads: int) -> Tensor:
    """(1, heads d, h, w) -> (1, heads, h w, d)."""
    return band.permute(0, 2, 3, 1).flatten(1, 2).unflatten(-1, (heads, -1)).transpose(1, 2)


def joined(parts: list[Tensor]) -> Tensor:
    """The positions of several maps; those of one are not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def pointwise(module: nn.Module, band: Tensor) -> Tensor:
    """A 1x1 convolution, or a linear layer over the channels: (1, C, rows, W) -> (1, D, rows, W)."""
    if isinstance(unwrapped(module), nn.Linear):
        return module(band.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return module(band.unsqueeze(2)).squeeze(2) if is_causal(module) else module(band)
