"""Reading OpenEXR: linear light, in floating point, with premultiplied alpha."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from .picture import Picture, from_values
from .profiles import UnreadableError, encode_srgb, profile_of


def read_exr(path: Path) -> Picture:
    """The first part's RGB, RGBA or Y channels. Raises UnreadableError where it has none."""
    import OpenEXR  # pyright: ignore[reportMissingImports]

    with OpenEXR.File(str(path)) as file:
        channels, header = file.channels(), file.header()
        name = next((name for name in ("RGBA", "RGB", "Y") if name in channels), None)
        if name is None:
            raise UnreadableError(f"has no colours, only the channels {', '.join(channels)}: save it with R, G and B.")
        values = np.array(channels[name].pixels, np.float32)
    values = values[..., None] if values.ndim == 2 else values
    if values.shape[-1] == 4:
        alpha = values[..., 3:]
        values = np.concatenate([np.where(alpha > 0, values[..., :3] / np.maximum(alpha, 1e-6), 0), alpha], axis=-1)
    values[..., :3] = encode_srgb(values[..., :3])
    red_green_blue_white = np.ravel(header.get("chromaticities", ()))
    picture = from_values(values)
    if len(red_green_blue_white) == 8:
        picture = replace(picture, icc_profile=profile_of((*red_green_blue_white[6:], *red_green_blue_white[:6])))
    return picture
