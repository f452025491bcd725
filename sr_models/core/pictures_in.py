"""Upscale pictures of the kinds that Python programs have: numpy arrays, tensors and Pillow images."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from . import upscale as core
from .model import SRModel
from .options import DEFAULTS, UpscaleOptions

if TYPE_CHECKING:
    from ..files.picture import Picture

Image = TypeVar("Image")
GiveBack = Callable[[Tensor], Any]
TAKES = (
    "upscale takes a numpy array (H, W), (H, W, C) or (B, H, W, C), a tensor (H, W), (C, H, W) or (B, C, H, W), or a "
    "Pillow image, with 1 to 4 channels of uint8, uint16, or floating-point numbers from 0 to 1"
)
LARGEST = {"uint8": 255, "uint16": 65535, "float16": 1, "bfloat16": 1, "float32": 1, "float64": 1}
TOLERANCE = 0.01  # values may be outside [0, 1] by so much, as after resizing; they are clipped


class Opened(Protocol):
    """What `load` returns."""

    @property
    def model(self) -> SRModel: ...


def upscale(model: SRModel | Opened, image: Image, options: UpscaleOptions = DEFAULTS, **reports: Any) -> Image:
    """Upscale a picture, or a batch of pictures of one size. The result has the kind, layout, channels and number type
    of what was given.

    Args:
        model: `load(...)`, or its `model`.
        image: a numpy array (H, W), (H, W, C) or (B, H, W, C), a tensor (H, W), (C, H, W) or (B, C, H, W) on any
            device, or a Pillow image. One channel is grey, two are grey and alpha, three RGB, four RGB and alpha.
            Numbers are uint8, uint16, or floating point from 0 to 1; a side has at least 8 px. EXIF rotation is applied
            to Pillow images, and those of other modes than L, LA, I;16, RGB and RGBA come back as RGB or RGBA.
        options: scale, tiles, colours and seed.
        reports: `progress`, `notice`, `policy` and `stage`, as in `core.upscale.upscale`.

    Returns:
        The upscaled picture, with sides of round(scale * side).

    Raises:
        UserError: for any other image, model or options, for values out of range, for a Pillow image that cannot be
            read or has several frames, and as `core.upscale.upscale`.
    """
    chosen = getattr(model, "model", model)
    if not isinstance(chosen, SRModel):
        raise UserError(f"upscale takes a model, not {type(model).__name__}: give load(...).")
    if not isinstance(options, UpscaleOptions):
        raise UserError(f"upscale takes UpscaleOptions, not {type(options).__name__}: give UpscaleOptions(scale=2).")
    batch, give_back = _taken(image)
    return give_back(core.upscale(chosen, batch, options, **reports))


def _taken(image: Any) -> tuple[Tensor, GiveBack]:
    """The picture as (B, 3 or 4, H, W) float32 in [0, 1], and the function that makes a result what the picture was."""
    pillow = sys.modules.get("PIL.Image")  # not imported where nothing has used it
    if pillow is not None and isinstance(image, pillow.Image):
        return _taken_pillow(image)
    if isinstance(image, np.ndarray):
        return _taken_array(image)
    if isinstance(image, Tensor):
        return _taken_tensor(image)
    raise UserError(f"{TAKES}, not {type(image).__name__}.")


def _taken_pillow(image: Any) -> tuple[Tensor, GiveBack]:
    from ..files.picture import to_pillow

    picture = _read(image)
    if picture.excess is not None:
        _require_range(picture.pixels + picture.excess)
    batch = (picture.pixels if picture.alpha is None else torch.cat([picture.pixels, picture.alpha]))[None]

    def give_back(result: Tensor) -> Any:
        if image.mode.startswith("I;16"):
            return _grey_of_16_bits(result[0, 0])
        alpha = None if picture.alpha is None else result[0, 3:]
        large = to_pillow(replace(picture, pixels=result[0, :3], alpha=alpha))
        mode = "LA" if image.mode == "La" else image.mode
        return large.convert(mode) if mode in ("L", "LA") else large

    return batch, give_back


def _read(image: Any) -> Picture:
    """The content of a Pillow image, which may only now be read from its file."""
    from ..files.picture import from_pillow
    from ..files.profiles import UnreadableError

    try:
        # The further pictures of a camera's MPO are previews and other views.
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        image.load()
        picture = from_pillow(image.convert("LA") if image.mode == "La" else image)
    except UnreadableError as error:
        raise UserError(f"The picture {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's errors for broken files are of many kinds
        raise UserError("The Pillow image is broken or closed: open it again from a whole file.") from error
    if frames > 1:
        raise UserError(f"The Pillow image has {frames} frames: go to each with seek, and give its copy().")
    return picture


def _grey_of_16_bits(values: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray((values * LARGEST["uint16"]).round().numpy().astype(np.uint16))


def _taken_array(image: np.ndarray) -> tuple[Tensor, GiveBack]:
    largest = _largest(image.dtype.name, image.shape, channel=-1)
    planes = image[None] if image.ndim == 2 else np.moveaxis(image, -1, -3)
    batch, as_planes = _batch(torch.from_numpy(np.ascontiguousarray(planes, np.float32)) / largest)

    def give_back(result: Tensor) -> np.ndarray:
        values = as_planes(result).numpy()
        values = values[0] if image.ndim == 2 else np.moveaxis(values, -3, -1)
        return (values if largest == 1 else (values * largest).round()).astype(image.dtype)

    return batch, give_back


def _taken_tensor(image: Tensor) -> tuple[Tensor, GiveBack]:
    if image.layout != torch.strided or image.is_nested or image.is_meta:
        kind = "a meta tensor" if image.is_meta else "a nested tensor" if image.is_nested else "a sparse tensor"
        raise UserError(f"{TAKES}, not {kind}.")
    largest = _largest(str(image.dtype).removeprefix("torch."), tuple(image.shape), channel=-3)
    planes = (image[None] if image.ndim == 2 else image).detach()
    batch, as_planes = _batch(planes.float() / largest)

    def give_back(result: Tensor) -> Tensor:
        values = as_planes(result)
        values = values[0] if image.ndim == 2 else values
        return (values if largest == 1 else (values * largest).round()).to(image.dtype)

    return batch, give_back


def _largest(dtype: str, shape: tuple[int, ...], channel: int) -> int:
    """The number that means 1. Raises UserError for types and shapes that are not taken."""
    if dtype not in LARGEST:
        raise UserError(f"{TAKES}, not {dtype}.")
    if len(shape) not in (2, 3, 4) or 0 in shape or (len(shape) > 2 and not 1 <= shape[channel] <= 4):
        raise UserError(f"{TAKES}, not the shape {shape}.")
    return LARGEST[dtype]


def _require_range(planes: Tensor) -> None:
    low, high = (float(value) for value in planes.aminmax())
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise UserError(
            f"The picture has floating-point values from {low:.3g} to {high:.3g}: scale them to 0 to 1, or convert it "
            "to uint8."
        )


def _batch(planes: Tensor) -> tuple[Tensor, GiveBack]:
    """(C, H, W) or (B, C, H, W) of 1 to 4 channels -> (B, 3 or 4, H, W), and the function that undoes it."""
    _require_range(planes)
    count = planes.shape[-3]
    channels = {1: [0, 0, 0], 2: [0, 0, 0, 1]}.get(count, list(range(count)))
    chosen = {1: [0], 2: [0, 3]}.get(count, list(range(count)))
    batch = planes.clamp(0, 1).reshape(-1, *planes.shape[-3:])[:, channels]

    def give_back(result: Tensor) -> Tensor:
        return result[:, chosen] if planes.ndim == 4 else result[0, chosen]

    return batch, give_back
