"""Bands of a canvas, compared with the whole canvas, for any tiles and any number of new plans."""

from __future__ import annotations

import sys

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onestep_sr.sr_models.canvas.resample_rows import RowResizer
from onestep_sr.sr_models.canvas.resize import resize
from onestep_sr.sr_models.canvas.tiling import plan
from onestep_sr.sr_models.core.bands import Bands

MULTIPLE = 4


def canvas(height: int, width: int) -> torch.Tensor:
    return torch.rand(1, 2, height, width, generator=torch.Generator().manual_seed(0))


@settings(deadline=None, max_examples=200)
@given(st.data(), st.booleans())
def test_bands_give_every_row_once_and_all_weights_sum_to_one(data, whole):
    """The tiles' own values are the canvas's, so each row is right only where the weights sum to 1."""
    height, width = MULTIPLE * data.draw(st.integers(1, 30)), 2 * MULTIPLE
    sides = data.draw(st.lists(st.sampled_from([4, 8, 12, 24, 48]), min_size=1, max_size=4).map(sorted))
    share = data.draw(st.floats(0, 0.5))
    cuts = []

    def cut(size):
        assert size[0] % MULTIPLE == size[1] % MULTIPLE == 0
        cuts.append(sides[-1 - len(cuts)])
        return plan(*size, cuts[-1], int(share * cuts[-1]))

    first = 0 if whole else data.draw(st.integers(0, height - 1))
    at_once = sys.maxsize if whole else width * data.draw(st.integers(0, height))
    bands, values, rows = Bands((height, width), cut, MULTIPLE, at_once=at_once, first=first), canvas(height, width), []
    while bands.left:
        if len(cuts) < len(sides) and data.draw(st.booleans()):
            bands.replan()
            continue
        band = bands.next()
        assert (band.bottom - band.top) * width <= at_once or len({tile.top for tile in band.tiles}) == 1
        latent = torch.zeros_like(values[:, :, band.top : band.bottom])
        for tile in band.tiles:
            tile.cut(latent).add_(tile.cut(values[:, :, band.top : band.bottom]) * tile.weight)
        top, finished = bands.join(band, latent)
        assert top == first + sum(part.shape[-2] for part in rows)
        rows.append(finished.clone())
    assert torch.allclose(torch.cat(rows, dim=-2), values[:, :, first:], atol=1e-5)


def test_bands_count_their_tiles():
    bands = Bands((40, 8), lambda size: plan(*size, 16, 4), MULTIPLE, at_once=0)
    counts = []
    while bands.left:
        band = bands.next()
        counts.append((band.before, len(band.tiles), band.total))
        bands.join(band, canvas(band.bottom - band.top, 8))
    assert counts == [(0, 1, 3), (1, 1, 3), (2, 1, 3)]


@settings(deadline=None, max_examples=100)
@given(st.integers(8, 60), st.integers(8, 20), st.floats(0.2, 5), st.integers(1, 70), st.data())
def test_rows_that_arrive_in_pieces_are_resized_like_the_whole(height, width, scale, count, data):
    image, target = canvas(height, width), (max(1, round(height * scale)), max(1, round(width * scale)))
    first = data.draw(st.integers(0, target[0] - 1))
    resizer, rows = RowResizer((height, width), target, first), []
    for top in range(resizer.top, height, count):
        part = resizer.add(top, image[:, :, top : top + count])
        rows += [] if part is None else [part]
    found = torch.cat(rows, dim=1)
    assert found.shape == (2, target[0] - first, target[1])
    assert torch.allclose(found, resize(image, target)[0, :, first:].clamp(0, 1), atol=1e-5)
