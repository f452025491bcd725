"""Continued pictures and their closed results."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from onestep_sr.sr_models.canvas.resample_rows import rows_of
from onestep_sr.sr_models.canvas.wrap import LEAST, WRAPS, Continuation, fitting, require_wrap
from onestep_sr.sr_models.errors import UserError

SIDES = st.integers(8, 200)


@given(SIDES, st.floats(1, 8))
@example(80, 1.015625)
@example(169, 336 / 169)
def test_what_is_added_fits_both_pictures(length, factor):
    result = round(factor * length)
    px, more = fitting(length, result)
    assert min(LEAST, length) <= px <= length and more >= 1
    # How far the result's beginning and its continuation are apart, in px.
    assert abs((result + more) / (length + px) * length - result) < 1 / 8


@given(SIDES, SIDES, st.sampled_from([1, 2, 4]), st.sampled_from(WRAPS), st.data())
def test_a_periodic_picture_comes_back_whatever_the_rows(height, width, factor, wrap, data):
    """An enlargement that only repeats pixels makes nothing of its own, so nothing may change."""
    image = torch.rand(1, height, width)
    result = torch.tensor(np.kron(image.numpy(), np.ones((1, factor, factor), np.float32)))
    way = Continuation.of(wrap, (height, width), (factor * height, factor * width))
    whole = torch.tensor(np.kron(way.continued(image).numpy(), np.ones((1, factor, factor), np.float32)))
    assert whole.shape[1:] == way.whole_result
    top = data.draw(st.integers(0, factor * height - 1))
    bottom = data.draw(st.integers(top + 1, factor * height))
    assert torch.allclose(way.closed(rows_of(whole))(top, bottom), result[:, top:bottom], atol=1e-6)


def test_the_continuation_fades_into_the_beginning():
    way = Continuation.of("x", (16, 64), (16, 64))
    assert (way.by, way.whole) == ((0, 16), (16, 80))
    row = torch.cat([torch.zeros(64), torch.ones(16)]).expand(1, 16, 80)
    [found] = way.closed(rows_of(row))(3, 4)
    assert found.shape == (1, 64)
    assert found[0, 0] > 0.99 and found[0, 15] < 0.01 and (found[0, 16:] == 0).all()
    assert (found[0, :16].diff() < 0).all()


def test_other_choices_are_refused():
    with pytest.raises(UserError, match=r"^Wrap 'z' is unknown: choose one of none, x, y, both\.$"):
        require_wrap("z")
