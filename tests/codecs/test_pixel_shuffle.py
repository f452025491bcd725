"""Pixel shuffle as a codec."""

import pytest
import torch
import torch.nn.functional as F
from onestep_sr.sr_models.codecs.pixel_shuffle import PixelShuffleCodec


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_pixel_shuffle_loses_nothing_and_changes_neither_argument(factor):
    codec = PixelShuffleCodec(factor)
    image = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    before = image.clone()
    latent = codec.encode(image)
    assert latent.shape == (2, codec.latent_channels, 8 // factor, 12 // factor)
    assert latent.min() >= -1
    kept = latent.clone()
    assert torch.allclose(codec.decode(latent), image, atol=1e-6)
    assert torch.equal(latent, kept)
    assert torch.equal(image, before)


def test_pixel_shuffle_preview_is_each_block_of_pixels_averaged():
    codec = PixelShuffleCodec(4)
    image = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    preview = codec.preview(codec.encode(image))
    assert preview.shape == (2, 3, 2, 3)
    assert torch.allclose(preview, F.avg_pool2d(image, 4), atol=1e-6)
    assert codec.preview(torch.full((1, 48, 2, 2), 3.0)).max() == 1
    assert codec.preview(torch.full((1, 48, 2, 2), -3.0)).min() == 0
