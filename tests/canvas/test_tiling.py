"""Windows cover the canvas, overlap as requested, and blend without seams."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onestep_sr.sr_models.canvas.tiling import Axis, plan, plan_axis
from onestep_sr.sr_models.errors import UserError

LONG = settings(deadline=None, max_examples=150)
WIDE = settings(deadline=None, max_examples=40)


@st.composite
def windows(draw, longest=5000, largest=512):
    """(length, tile, overlap) that a caller may ask for."""
    tile = draw(st.integers(8, largest))
    return draw(st.integers(8, longest)), tile, draw(st.integers(0, tile // 2))


def laid_out(axis: Axis) -> torch.Tensor:
    """Each window's weights at its place, zero elsewhere: (windows, length), float64."""
    canvas = torch.zeros(len(axis.starts), axis.length, dtype=torch.float64)
    for index, start in enumerate(axis.starts):
        canvas[index, start : start + axis.size] = axis.weight(index)
    return canvas


@LONG
@given(windows())
def test_windows_cover_the_axis_and_stay_on_it(asked):
    length, tile, overlap = asked
    axis = plan_axis(length, tile, overlap)
    covered = torch.zeros(length, dtype=torch.int64)
    for start in axis.starts:
        assert 0 <= start <= start + axis.size <= length
        covered[start : start + axis.size] += 1
    assert covered.min() >= 1
    assert axis.size == min(length, tile)


@LONG
@given(windows())
def test_windows_share_at_least_the_overlap_and_are_as_few_as_can_be(asked):
    length, tile, overlap = asked
    axis = plan_axis(length, tile, overlap)
    shared = [before + axis.size - after for before, after in zip(axis.starts, axis.starts[1:], strict=False)]
    assert all(value >= overlap for value in shared)
    fewest = next(n for n in range(1, length + 1) if n * tile - (n - 1) * overlap >= length)
    assert len(axis.starts) == fewest


@LONG
@given(windows())
def test_windows_are_spread_evenly_from_end_to_end(asked):
    axis = plan_axis(*asked)
    gaps = [after - before for before, after in zip(axis.starts, axis.starts[1:], strict=False)]
    assert max(gaps, default=0) - min(gaps, default=0) <= 1
    assert axis.starts[0] == 0
    assert axis.starts[-1] + axis.size == axis.length


@LONG
@given(windows())
def test_weights_are_not_negative_and_sum_to_one(asked):
    weights = laid_out(plan_axis(*asked))
    assert weights.min() >= 0
    assert (weights.sum(0) - 1).abs().max() < 1e-6


@LONG
@given(windows())
def test_no_weight_jumps_at_a_window_border(asked):
    """The maximum slope of a smoothstep over n px is 1.5 / n, also at the borders of windows."""
    length, tile, overlap = asked
    weights = laid_out(plan_axis(length, tile, overlap))
    jumps = weights.diff(dim=1).abs()
    assert jumps.max() <= (1.5 / overlap if overlap else 1) + 1e-5


@WIDE
@given(st.integers(8, 300), st.integers(8, 300), st.integers(16, 128), st.data())
def test_two_dimensional_weights_sum_to_one(height, width, tile, data):
    overlap = data.draw(st.integers(0, tile // 2))
    total = torch.zeros(height, width, dtype=torch.float64)
    for window in plan(height, width, tile, overlap):
        window.cut(total).add_(window.weight)
    assert (total - 1).abs().max() < 1e-6


@pytest.mark.parametrize(("height", "width"), [(40, 200), (200, 40), (64, 65), (150, 101)])
def test_a_non_square_canvas_is_put_together_again(height, width):
    canvas = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    result = torch.zeros_like(canvas)
    tiles = list(plan(height, width, 64, 16))
    for tile in tiles:
        piece = tile.cut(canvas)
        assert piece.shape[-2:] == tile.weight.shape == (min(height, 64), min(width, 64))
        tile.cut(result).add_(piece * tile.weight)
    assert torch.allclose(result, canvas, atol=1e-5)
    assert len(plan(height, width, 64, 16)) == len(tiles)
    across, down = math.ceil((width - 16) / 48), math.ceil((height - 16) / 48)
    assert len(tiles) == across * down


def test_windows_worked_by_hand():
    axis = plan_axis(100, 64, 16)
    assert (axis.size, axis.starts) == (64, (0, 36))
    # The two share pixels 36 .. 63: pixel 36 is 0.5 / 28 into the rise, and 3 s^2 - 2 s^3 of it is the second's.
    share = 0.5 / 28
    assert axis.weight(1)[0].item() == pytest.approx(3 * share**2 - 2 * share**3, rel=1e-5)
    assert axis.weight(0)[35].item() == axis.weight(1)[28].item() == 1
    assert plan_axis(64, 64, 16).starts == (0,)
    assert plan_axis(65, 64, 16).starts == (0, 1)


def test_adjacent_windows_without_overlap_do_not_blend():
    weights = laid_out(plan_axis(24, 8, 0))
    assert weights.tolist() == torch.eye(3).repeat_interleave(8, dim=1).tolist()


def test_cut_of_a_finer_canvas_is_the_same_window():
    canvas = torch.arange(30 * 40 * 4).reshape(60, 80)
    tile = list(plan(30, 40, 16, 4))[-1]
    assert (tile.top, tile.left) == (14, 24)
    assert torch.equal(tile.cut(canvas, 2), canvas[28:60, 48:80])


def test_a_plan_for_a_huge_canvas_makes_its_windows_one_by_one():
    """All at once they would take 70 GB."""
    huge = plan(100_000, 100_000, 64, 16)
    assert len(huge) == 2083**2
    assert next(iter(huge)).weight.shape == (64, 64)


@pytest.mark.parametrize(("tile", "overlap"), [(64, 33), (64, 64), (64, -1), (7, 4)])
def test_an_overlap_out_of_range_is_refused(tile, overlap):
    with pytest.raises(UserError) as caught:
        plan(100, 100, tile, overlap)
    assert str(caught.value) == f"Overlap {overlap} does not fit tile {tile}: choose one from 0 to {tile // 2}."
