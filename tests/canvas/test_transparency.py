"""What is invisible has no influence, and grey stays grey."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onestep_sr.sr_models.canvas.resize import resize
from onestep_sr.sr_models.canvas.transparency import fill_transparent, is_grey, to_grey
from PIL import Image
from places import PHOTOS
from torch import Tensor

VALUES = np.asarray(Image.open(PHOTOS / "houses.png").convert("RGB"))[40:88, 60:124]
PHOTO = torch.from_numpy(VALUES.copy()).permute(2, 0, 1).float() / 255
DISTANCE = torch.from_numpy(np.hypot(*np.ogrid[-24:24, -32:32])).float()
DISC = (DISTANCE < 20).float()[None]
SOFT_DISC = ((22 - DISTANCE) / 4).clamp(0, 1)[None]


def on_white(pixels: Tensor, alpha: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    size = (pixels.shape[-2] * scale, pixels.shape[-1] * scale)
    opacity = resize(alpha[None], size)[0].clamp(0, 1)
    return resize(pixels[None], size)[0].clamp(0, 1) * opacity + 1 - opacity, opacity


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("alpha", [DISC, SOFT_DISC])
@pytest.mark.parametrize("hidden", [(0.0, 0.0, 0.0), (1.0, 0.0, 1.0)])
def test_edges_on_white_are_those_of_premultiplied_bicubic(scale: int, alpha: Tensor, hidden: tuple) -> None:
    pixels = torch.where(alpha > 0, PHOTO, torch.tensor(hidden)[:, None, None])
    size = (48 * scale, 64 * scale)
    filled, opacity = on_white(fill_transparent(pixels, alpha), alpha, scale)
    premultiplied = resize((pixels * alpha)[None], size)[0] + 1 - opacity
    edge = ((opacity > 0.05) & (opacity < 0.95))[0]
    assert (filled[:, edge].mean(1) - premultiplied[:, edge].mean(1)).abs().max() < 2 / 255
    assert (filled - premultiplied)[:, edge].abs().mean() < 4 / 255
    if alpha is DISC:  # whose edge is hard: without the filling the test fails
        untreated = on_white(pixels, alpha, scale)[0]
        assert (untreated[:, edge].mean(1) - premultiplied[:, edge].mean(1)).abs().max() > 4 / 255


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 999))
def test_what_lies_under_alpha_0_has_no_influence(height: int, width: int, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels, other = torch.rand(2, 3, height, width, generator=generator)
    alpha = torch.rand(1, height, width, generator=generator) * (
        torch.rand(1, height, width, generator=generator) < share
    )
    alpha[0, 0, 0] = round(share)
    filled = fill_transparent(pixels, alpha)
    assert torch.equal(filled, fill_transparent(torch.where(alpha > 0, pixels, other), alpha))
    assert torch.equal(torch.where(alpha > 0, filled, 0), torch.where(alpha > 0, pixels, 0))
    if alpha.any():
        seen = torch.where(alpha > 0, pixels, torch.nan).flatten(1)
        low, high = seen.nan_to_num(1).amin(1), seen.nan_to_num(0).amax(1)
        assert (filled.flatten(1) >= low[:, None] - 1e-5).all() and (filled.flatten(1) <= high[:, None] + 1e-5).all()
    else:
        assert not filled.any()


def test_not_a_number_under_alpha_0_is_not_seen() -> None:
    pixels = torch.where(DISC > 0, PHOTO, torch.nan)
    assert torch.isfinite(fill_transparent(pixels, DISC)).all()


def test_one_colour_fills_everything() -> None:
    color = torch.tensor([0.2, 0.5, 0.7])[:, None, None]
    alpha = torch.zeros(1, 100, 70)
    alpha[0, 30, 50] = 0.3
    assert torch.allclose(
        fill_transparent(torch.where(alpha > 0, color, 0), alpha), color.expand(3, 100, 70), atol=1e-5
    )


def test_opaque_pictures_are_left_as_they_are() -> None:
    assert fill_transparent(PHOTO, torch.ones(1, 48, 64)) is PHOTO


def test_grey_is_told_from_colour_and_stays() -> None:
    grey = torch.rand(1, 9, 7).expand(3, -1, -1)
    assert is_grey(grey) and not is_grey(PHOTO)
    printed = (grey + torch.tensor([0.1, -0.02, 0.0])[:, None, None])[None]
    assert is_grey(to_grey(printed)[0])
    assert torch.equal(to_grey(grey), grey)
    # Pillow's luma, the same weights in integers
    expected = np.asarray(Image.fromarray(VALUES).convert("L"))
    assert np.abs(to_grey(PHOTO)[0].numpy() * 255 - expected).max() <= 1
