"""The size of a result, against exact fractions."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import partial
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onestep_sr.sr_models.canvas.target import PRESETS, Box, Factor, Megapixels, Side, Target, size_for
from onestep_sr.sr_models.errors import UserError

SIDES = st.integers(8, 20_000)
KINDS = st.sampled_from(["longest", "shortest", "width", "height"])


def possible(target: Target, height: int, width: int) -> bool:
    return target.factor(height, width) <= 8


@given(height=SIDES, width=SIDES, kind=KINDS, length=st.integers(1, 70_000))
def test_the_asked_side_is_exact_and_the_other_keeps_the_shape(height: int, width: int, kind, length: int) -> None:
    target = Side(kind, length)
    if not possible(target, height, width):
        with pytest.raises(UserError, match="but at most 8 times"):
            size_for(target, height, width)
        return
    result = dict(zip(("height", "width"), size_for(target, height, width), strict=True))
    sides = {"longest": max, "shortest": min}
    assert (sides[kind](result.values()) if kind in sides else result[kind]) == length
    own = {"longest": max(height, width), "shortest": min(height, width), "width": width, "height": height}[kind]
    for name, side in (("height", height), ("width", width)):
        exact = Fraction(side * length, own)
        assert abs(result[name] - exact) <= Fraction(1, 2) + Fraction(1, 10**6) or result[name] == 1


@given(height=SIDES, width=SIDES, box=st.tuples(st.integers(1, 9000), st.integers(1, 9000)))
def test_a_fitting_result_touches_the_box_and_stays_inside(height: int, width: int, box: tuple[int, int]) -> None:
    target = Box(*box)
    if not possible(target, height, width):
        return
    result = size_for(target, height, width)
    assert max(result) <= max(box) and min(result) <= max(1, min(box))
    assert max(result) == max(box) or min(result) == min(box)
    assert (result[0] >= result[1]) == (height >= width) or abs(result[0] - result[1]) <= 1


@given(height=SIDES, width=SIDES, megapixels=st.floats(0.01, 400))
def test_megapixels_are_reached_as_far_as_whole_sides_allow(height: int, width: int, megapixels: float) -> None:
    target = Megapixels(megapixels)
    if not possible(target, height, width):
        return
    result = size_for(target, height, width)
    if min(result) > 20:
        assert result[0] * result[1] == pytest.approx(megapixels * 1e6, abs=0.51 * sum(result) + 1)


def test_the_screens_that_have_names() -> None:
    assert {name: size_for(Box.parse(name), 1080, 1920) for name in PRESETS} == {
        "1080p": (1080, 1920),
        "1440p": (1440, 2560),
        "4k": (2160, 3840),
        "8k": (4320, 7680),
    }
    assert size_for(Box.parse("4K"), 3000, 2000) == (3240, 2160)
    assert Box.parse("640x480") == Box(640, 480) and Box.parse(" 640\u00d7480 ") == Box(640, 480)


@pytest.mark.parametrize("text", ["", "4", "k", "0x10", "10x0", "10x", "-1x5", "1e3x5", "9999999x5", "5 k"])
def test_a_text_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not a size: choose 1080p"):
        Box.parse(text)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        *[(partial(Megapixels, value), "choose a number over 0") for value in (nan, inf, 0, -1, "8", None, True)],
        *[(partial(Side, "longest", value), "choose a whole number from 1") for value in (0, -4, 5.5, "9", nan, None)],
        (partial(Side, "long", 9), "choose one of longest, shortest, width, height"),
        *[(partial(Box, *sides), "choose whole numbers from 1") for sides in ((0, 9), (9, -1), (9, 4.5), ("9", 9))],
        *[(partial(Factor, value), "choose one from 1 to 8") for value in ("4", None, [2], True)],
    ],
)
def test_what_is_no_target_is_refused(make, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        make()
    assert str(caught.value).endswith(".") and ". " not in str(caught.value)


def test_small_pictures_and_scales_out_of_bounds_are_refused() -> None:
    for target in (Factor(4), Side("longest", 20), Megapixels(0.0001)):
        with pytest.raises(UserError, match="it needs at least 8 px a side"):
            size_for(target, 7, 30)
    for scale in (0.99, 8.01, float("nan"), -4):
        with pytest.raises(UserError, match="is out of range: choose one from 1 to 8"):
            size_for(Factor(scale), 20, 20)


def test_targets_are_told_in_words() -> None:
    targets = Factor(2.5), Side("longest", 9), Side("width", 9), Megapixels(1.5), Box(4, 3)
    assert [str(t) for t in targets] == ["2.5", "longest side 9 px", "width 9 px", "1.5 megapixels", "fit 4 x 3 px"]


@pytest.mark.parametrize(("width", "said"), [(321, "8.1"), (1000, "25"), (100_000, "2500")])
def test_a_factor_that_is_too_large_is_said_in_plain_figures(width: int, said: str) -> None:
    with pytest.raises(UserError, match=f"must become {re.escape(said)} times as large"):
        size_for(Side("width", width), 28, 40)
