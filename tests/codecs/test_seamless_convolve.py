"""Convolutions of bands equal those of the whole picture, with their own weights or through the module."""

import pytest
import torch
import torch.nn.functional as F
from onestep_sr.sr_models.codecs.seamless import convolve
from onestep_sr.sr_models.codecs.seamless.convolve import convolved, convolved_frames, enlarged, own_weights
from torch import nn

BANDS = [(0, 9), (0, 4), (3, 6), (5, 9), (8, 9)]
UNKNOWN = ["hook", "forward", "cast", "half"]


def conv2d():
    torch.manual_seed(0)
    return nn.Conv2d(5, 7, 3, padding=1)


def changed(conv, how):
    """A module whose call may mean more than its own weights."""
    if how == "hook":
        conv.register_forward_pre_hook(lambda *_: None)
    elif how == "forward":  # as accelerate replaces it
        forward = conv.forward
        conv.forward = forward
    elif how == "cast":
        conv.comfy_cast_weights = True
    return conv


@pytest.mark.parametrize("how", ["own", "hook"])
@pytest.mark.parametrize("band", BANDS, ids=str)
def test_a_band_and_a_band_twice_as_large(band, how):
    conv, whole, (top, bottom) = changed(conv2d(), how), torch.randn(1, 5, 9, 6), band
    above, below = min(1, top), min(1, 9 - bottom)
    part = whole[:, :, top - above : bottom + below]
    with torch.no_grad():
        expected = conv(whole)[:, :, top:bottom]
        assert torch.allclose(convolved(conv, part, above, below), expected, atol=1e-5)
        expected = conv(F.interpolate(whole, scale_factor=2))[:, :, 2 * top : 2 * bottom]
        assert torch.allclose(enlarged(conv, part, above, below), expected, atol=1e-5)


def test_a_small_band_of_many_channels_keeps_its_layout():
    """Its convolution uses that of the weights; statistics of its rows need the map's."""
    conv, whole = nn.Conv2d(64, 96, 3, padding=1), torch.randn(1, 9, 6, 64).permute(0, 3, 1, 2)
    with torch.no_grad():
        found, expected = convolved(conv, whole[:, :, :6], 0, 1), conv(whole)[:, :, :5]
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("how", UNKNOWN)
def test_only_modules_that_do_nothing_else_are_replaced_by_their_weights(how):
    band = torch.randn(1, 5, 4, 6, dtype=torch.float16 if how == "half" else torch.float32)
    assert own_weights(conv2d(), band.float()) is not None
    assert own_weights(changed(conv2d(), how), band) is None


@pytest.mark.parametrize("how", [None, "hook"])
@pytest.mark.parametrize("at_once", [2**22, 300], ids=["whole", "a few filters"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["zeros", "reflect", "replicate"])
@pytest.mark.parametrize("window", [(0, 1, 2), (0, 0, 1), (0, 1, 1), (0, 0, 0)], ids=str)
def test_three_frames_equal_the_module(monkeypatch, window, padding, stride, at_once, how):
    """Also if the first or the last frame is repeated, so that fewer are convolved."""
    monkeypatch.setattr(convolve, "WEIGHTS_AT_ONCE", at_once)
    torch.manual_seed(0)
    own = {"padding": 0} if padding == "replicate" else {"padding": (0, 1, 1), "padding_mode": padding}
    conv = nn.Conv3d(5, 7, 3, (1, stride, stride), **own)
    different = torch.randn(1, 5, 3, 6, 8).unbind(2)
    frames = torch.stack([different[index] for index in window], 2)
    with torch.no_grad():
        outside = F.pad(frames, (1, 1, 1, 1, 0, 0), mode=padding) if padding == "replicate" else frames
        expected = conv(outside)[:, :, 0]
        conv = conv if how is None else changed(conv, how)
        assert (own_weights(conv, different[0]) is None) == (how is not None)
        found = convolved_frames(conv, [different[index] for index in window], padding)
        assert (found - expected).abs().max() < 1e-5


def test_frames_that_are_one_are_convolved_once(monkeypatch):
    seen, conv2d = [], F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *inputs: seen.append(inputs[0]) or conv2d(*inputs))
    conv, (one, other) = nn.Conv3d(5, 7, 3, padding=(0, 1, 1)), torch.randn(2, 1, 5, 6, 8)
    for frames, count in (([one, one, one], 1), ([one, one, other], 2), ([one, other, one], 3)):
        seen.clear()
        convolved_frames(conv, frames, "zeros")
        assert len(seen) == count
