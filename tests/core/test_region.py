"""Regions: what the model sees, what it changes, and what is said of an empty mask."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from formula_model import Formula, formula_model, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from onestep_sr.sr_models.canvas.resize import resize
from onestep_sr.sr_models.core import region
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.region import CONTEXT, FADE, _spans, upscale_regions
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.errors import UserError


def box(top, bottom, left, right, height=120, width=160):
    mask = torch.zeros(1, 1, height, width)
    mask[..., top:bottom, left:right] = 1
    return mask


def enlarged(image, factor):
    size = tuple(round(factor * side) for side in image.shape[-2:])
    return F.interpolate(image, size=size, mode="bicubic").clamp(0, 1)


@pytest.fixture
def seen(monkeypatch):
    """The sizes of the pictures that the core upscales."""
    sizes = []

    def spied(model, image, *rest, **more):
        sizes.append(tuple(image.shape[-2:]))
        return upscale(model, image, *rest, **more)

    monkeypatch.setattr("onestep_sr.sr_models.core.region.upscale", spied)
    return sizes


@pytest.mark.parametrize("factor", [2, 2.5, 4])
def test_the_model_runs_on_the_masks_box_only(seen, factor):
    image, mask = picture(160, 200), box(60, 90, 70, 100, 160, 200)
    result = upscale_regions(formula_model(), image, mask, UpscaleOptions(factor))
    plain = enlarged(image, factor)
    [(height, width)] = seen
    assert all(2 * CONTEXT + 30 <= side <= 3 * CONTEXT + 30 + 2 * FADE for side in (height, width))
    margin = FADE + 2  # bicubic reaches 2 px
    outside = (
        F.interpolate(box(60 - margin, 90 + margin, 70 - margin, 100 + margin, 160, 200), result.shape[2:])[0, 0] == 0
    )
    assert torch.equal(result[..., outside], plain[..., outside])
    inside = (
        F.interpolate(box(60 + margin, 90 - margin, 70 + margin, 100 - margin, 160, 200), result.shape[2:])[0, 0] == 1
    )
    assert (result - plain)[..., inside].abs().mean() > 0.01


def test_a_mask_over_all_is_the_whole_upscale(seen):
    image = picture(30, 40, channels=4)
    result = upscale_regions(formula_model(), image, torch.ones(1, 1, 8, 8), UpscaleOptions(4))
    assert torch.allclose(result, upscale(formula_model(), image), atol=1e-6)
    assert seen == [(30, 40)]


def test_the_model_has_the_prompt_of_the_masks_picture():
    class Prompted(Formula):
        def run(self, work, shape, condition=None):
            return work(lambda latent, lr, timestep: self(latent, lr, timestep) * condition)

    images = torch.cat([picture(30, 40, seed=seed) for seed in range(2)])
    shared = replace(formula_model(), denoiser=Prompted(), conditioner=lambda image, index: (0.3, 0.9)[index])
    masks, whole = torch.ones(2, 1, 30, 40), upscale(replace(shared, pictures=2), images)
    result = upscale_regions(replace(shared, pictures=2), images, masks, UpscaleOptions(4))
    assert torch.allclose(result, whole, atol=1e-6)
    assert (whole[1] - upscale(shared, images[1:])[0]).abs().max() > 0.01, "the prompt makes a difference"
    with pytest.raises(UserError, match=r"number of prompts \(2\) is not that of the images \(1\)"):
        upscale_regions(replace(shared, pictures=2), images[:1], masks, UpscaleOptions(4))


def test_each_picture_has_its_mask_and_an_empty_one_is_named(seen):
    images, said = torch.cat([picture(120, 160, seed=seed) for seed in range(3)]), []
    masks = torch.cat([box(0, 10, 0, 10), torch.zeros(1, 1, 120, 160), box(100, 120, 150, 160)])
    result = upscale_regions(formula_model(), images, masks, UpscaleOptions(2), notice=said.append)
    assert said == ["The region of image 2 is empty: it was only resized, without the model."]
    plain = enlarged(images, 2)
    assert torch.equal(result[1], plain[1])
    changed = [(result - plain)[index].abs().amax(0) > 0 for index in (0, 2)]
    assert changed[0][:20, :20].any() and not changed[0][30:].any()
    assert changed[1][210:, 310:].any() and not changed[1][:180].any()
    assert len(seen) == 2


def test_several_masks_of_one_picture_have_a_box_each(seen):
    """As a detector gives them for faces: two small boxes far apart are not one large one."""
    image = picture(400, 400)
    masks = torch.cat([box(10, 30, 10, 30, 400, 400), box(370, 390, 370, 390, 400, 400)])
    counts = []
    upscale_regions(
        formula_model(), image, masks, UpscaleOptions(2), progress=lambda done, total, _: counts.append((done, total))
    )
    assert len(seen) == 2 and all(max(size) < 130 for size in seen)
    assert [done for done, _ in counts] == list(range(1, counts[-1][1] + 1))


def test_other_numbers_of_masks_and_wrap_are_refused():
    images, masks = picture(16, 16).repeat(2, 1, 1, 1), torch.ones(3, 1, 16, 16)
    with pytest.raises(UserError, match="3 regions for 2 images"):
        upscale_regions(formula_model(), images, masks, UpscaleOptions())
    with pytest.raises(UserError, match="set wrap to none"):
        upscale_regions(formula_model(), images, masks[:1], UpscaleOptions(wrap="x"))


@settings(max_examples=200)
@given(st.integers(8, 600), st.floats(1, 8), st.data())
def test_a_box_holds_the_mask_and_fits_the_results_pixels(length, factor, data):
    first = data.draw(st.integers(0, length - 1))
    last, result = data.draw(st.integers(first + 1, length)), round(factor * length)
    (begin, end), (large_begin, large_end) = _spans((first, last), length, result)
    assert 0 <= begin <= max(0, first - CONTEXT) and min(length, last + CONTEXT) <= end <= length
    assert end - begin >= 8
    assert abs(begin * result / length - large_begin) <= 0.5 and abs(end * result / length - large_end) <= 0.5
    assert 0 <= large_begin < large_end <= result


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_box_of_the_mask_is_enlarged_as_the_whole_is(data):
    """To the bit, also where the mask reaches the picture's border; only the box is at powers of two."""
    sides = [data.draw(st.integers(8, 180)) for _ in range(2)]
    factor = data.draw(st.sampled_from([1, 2, 4, 8, 0.5, 2.5, 3]))
    spans = [sorted(data.draw(st.tuples(st.integers(0, side), st.integers(0, side)))) for side in sides]
    mask, within = torch.zeros(1, 1, *sides), (..., slice(*spans[0]), slice(*spans[1]))
    mask[within] = torch.rand(mask[within].shape, generator=torch.Generator().manual_seed(0))
    size = (round(factor * sides[0]), round(factor * sides[1]))
    for _, soft in region._marked(1, mask, (sides[0], sides[1])):
        rows, columns = (_spans(*each) for each in zip(region._inside(soft), sides, size, strict=True))
        with mock.patch.object(region, "resize", wraps=resize) as spied:
            found = region._enlarged(soft, size, (rows[0], columns[0]), (rows[1], columns[1]))
        whole = resize(soft[None], size).clamp(0, 1)
        assert torch.equal(found, whole[0, :, slice(*rows[1]), slice(*columns[1])])
        if factor in (2, 4, 8):
            assert spied.call_args.args[0].shape[2:] == (rows[0][1] - rows[0][0], columns[0][1] - columns[0][0])


def test_the_formula_is_not_the_enlargement():
    assert (upscale(formula_model(), picture(16, 16)) - enlarged(picture(16, 16), 4)).abs().mean() > 0.01
    assert Formula.dtype == torch.float32
