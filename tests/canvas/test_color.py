"""Colour matching against float64 formulae that share nothing with it."""

import numpy as np
import pytest
import torch
from onestep_sr.sr_models.canvas import color
from onestep_sr.sr_models.errors import UserError


def pictures(height=37, width=52, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.rand(2, 2, 3, height, width, generator=random)


def low_band(image: np.ndarray) -> np.ndarray:
    """Five blurs with the 3 x 3 binomial kernel, taps 1, 2, 4, 8, 16 px apart, borders replicated."""
    kernel = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    height, width = image.shape[-2:]
    for distance in (1, 2, 4, 8, 16):
        padded = np.pad(image, ((0, 0), (0, 0), (distance, distance), (distance, distance)), mode="edge")
        image = sum(
            kernel[i, j] * padded[..., i * distance : i * distance + height, j * distance : j * distance + width]
            for i in range(3)
            for j in range(3)
        )
    return image


@pytest.mark.parametrize("size", [(37, 52), (8, 8), (9, 70)])
def test_wavelet_puts_the_high_bands_on_the_low_band_of_the_reference(size):
    image, reference = pictures(*size)
    result = color.match(image, reference, "wavelet")
    x, y = image.double().numpy(), reference.double().numpy()
    expected = (x - low_band(x)) + low_band(y)
    assert np.abs(result.numpy() - expected).max() < 1e-6


def test_wavelet_takes_a_colour_cast_away_and_leaves_the_rest():
    image, _ = pictures()
    cast = torch.tensor([0.2, -0.1, 0.05])[:, None, None]
    assert torch.allclose(color.match(image + cast, image, "wavelet"), image, atol=1e-6)


def test_wavelet_keeps_detail_that_the_reference_lacks():
    """Stripes one pixel wide are all high band: a flat reference gives its colour and takes none of them."""
    stripes = torch.full((1, 3, 96, 96), 0.5)
    stripes[..., ::2] += 0.1
    stripes[..., 1::2] -= 0.1
    result = color.match(stripes, torch.full_like(stripes, 0.3), "wavelet")
    inside = result[..., 32:-32]  # the replicated border, which has no stripes, reaches 31 px
    assert torch.allclose(inside[..., ::2], torch.tensor(0.4), atol=1e-6)
    assert torch.allclose(inside[..., 1::2], torch.tensor(0.2), atol=1e-6)


def test_adain_gives_each_channel_mean_and_deviation_of_the_reference():
    image, reference = pictures()
    reference = reference * 0.4 + 0.1
    result = color.match(image, reference, "adain").double().numpy()
    x, y = image.double().numpy(), reference.double().numpy()
    axes = {"axis": (2, 3), "keepdims": True}
    expected = (x - x.mean(**axes)) / x.std(**axes) * y.std(**axes) + y.mean(**axes)
    assert np.abs(result - expected).max() < 1e-4
    assert np.abs(result.mean((2, 3)) - y.mean((2, 3))).max() < 1e-6
    assert np.abs(result.std((2, 3)) - y.std((2, 3))).max() < 1e-4


@pytest.mark.parametrize("method", ["wavelet", "adain"])
def test_a_flat_picture_takes_the_colour_of_a_flat_reference(method):
    grey, blue = torch.full((1, 3, 40, 40), 0.5), torch.full((1, 3, 40, 40), 0.2)
    assert torch.allclose(color.match(grey, blue, method), blue, atol=1e-6)


@pytest.mark.parametrize("method", ["wavelet", "adain"])
def test_pictures_of_a_batch_do_not_mix_and_arguments_stay_as_they_are(method):
    image, reference = pictures()
    before = image.clone(), reference.clone()
    together = color.match(image, reference, method)
    alone = torch.cat([color.match(image[i : i + 1], reference[i : i + 1], method) for i in range(2)])
    assert torch.allclose(together, alone, atol=1e-6)
    assert torch.equal(image, before[0])
    assert torch.equal(reference, before[1])


def test_none_changes_nothing():
    image, reference = pictures()
    assert torch.equal(color.match(image, reference, "none"), image)


def test_an_unknown_method_is_named_with_the_known_ones():
    with pytest.raises(UserError) as caught:
        color.match(*pictures(), "sepia")  # type: ignore[arg-type]
    assert str(caught.value) == "Colour match 'sepia' is unknown: choose one of none, wavelet, adain."
