"""Strength, with waves: what the small picture can hold stays, what it cannot hold is weighted."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onestep_sr.sr_models.canvas.strength import at_strength, reach

SIDE = 160
FACTORS = st.sampled_from([2.0, 2.5, 3.3, 4.0, 8.0])
STRENGTHS = st.sampled_from([0.0, 0.25, 0.5, 0.9])


def wave(nyquists: float, factor: float, angle: float) -> torch.Tensor:
    """A wave of a frequency in units of the small picture's highest one, along x (angle 0) or y."""
    places = torch.arange(SIDE, dtype=torch.float64)
    line = torch.cos(math.pi * nyquists / factor * places + 1)
    return (line[None] if angle == 0 else line[:, None]).expand(1, 3, SIDE, SIDE)


def inner(image: torch.Tensor, factor: float) -> torch.Tensor:
    return image[..., reach(factor) : -reach(factor), reach(factor) : -reach(factor)]


@settings(max_examples=60, deadline=None)
@given(factor=FACTORS, strength=STRENGTHS, nyquists=st.floats(0, 0.75), angle=st.sampled_from([0, 1]))
def test_what_the_small_picture_can_hold_is_the_results_at_any_strength(factor, strength, nyquists, angle):
    result, enlarged = wave(nyquists, factor, angle), torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64)
    found = at_strength(result, enlarged, strength, (factor, factor))
    assert (inner(found, factor) - inner(result, factor)).abs().max() < 0.01


@settings(max_examples=60, deadline=None)
@given(factor=FACTORS, strength=STRENGTHS, nyquists=st.floats(1.25, 2), angle=st.sampled_from([0, 1]))
def test_what_it_cannot_hold_is_blended_with_the_enlarged_picture(factor, strength, nyquists, angle):
    result, enlarged = wave(nyquists, factor, angle), wave(nyquists / 2, factor, 1 - angle)
    found = at_strength(result + enlarged, enlarged, strength, (factor, factor))
    expected = enlarged + strength * result
    assert (inner(found, factor) - inner(expected, factor)).abs().max() < 0.01


@given(strength=STRENGTHS)
def test_at_the_pictures_own_size_there_is_nothing_to_weigh(strength):
    result, enlarged = torch.rand(2, 1, 3, 20, 20)
    assert torch.equal(at_strength(result, enlarged, strength, (1, 1)), result)


@pytest.mark.parametrize("factor", [1.0, 2.0, 4.0])
def test_strength_1_is_the_result_itself(factor):
    result = torch.rand(1, 3, 20, 20)
    assert at_strength(result, torch.zeros_like(result), 1, (factor, factor)) is result
