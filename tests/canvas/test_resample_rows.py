"""A few rows of a resized picture, against the whole one resized."""

from __future__ import annotations

import torch
from formula_model import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from onestep_sr.sr_models.canvas.resample_rows import resized_rows
from onestep_sr.sr_models.canvas.resize import resize


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 50), st.integers(8, 20), st.floats(0.3, 8), st.integers(1, 40), st.data())
def test_resized_rows_are_those_of_the_whole(height, width, scale, count, data):
    image, target = picture(height, width), (max(1, round(height * scale)), max(1, round(width * scale)))
    top = data.draw(st.integers(0, target[0] - 1))
    bottom = min(top + count, target[0])
    rows = resized_rows(lambda first, last: image[:, :, first:last], (height, width), target, top, bottom)
    assert torch.allclose(rows, resize(image, target)[:, :, top:bottom], atol=1e-5)
