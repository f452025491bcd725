"""The network from picture to picture: size, start, and what a shift of its input does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from onestep_sr.sr_models.networks.conv_sr import ConvSR, ConvSRConfig


def trained(channels: int = 16, blocks: int = 2) -> ConvSR:
    """With a last convolution that is not zero."""
    torch.manual_seed(0)
    network = ConvSR(ConvSRConfig(channels, blocks)).double()
    torch.nn.init.normal_(network.out.weight, std=0.2)
    return network


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 8), (17, 3)])
def test_a_new_network_enlarges_bicubically(height: int, width: int) -> None:
    image = torch.rand(2, 3, height, width)
    expected = F.interpolate(image, scale_factor=4, mode="bicubic", align_corners=False)
    assert torch.equal(ConvSR(ConvSRConfig(8, 1))(image), expected)


def test_the_default_network_is_small() -> None:
    with torch.device("meta"):
        network = ConvSR(ConvSRConfig())
    assert sum(weight.numel() for weight in network.parameters()) == 1_286_851


def test_a_shift_by_whole_pixels_shifts_the_result() -> None:
    """Away from the border by what the network sees: 2 px per block, and 6 more for the other layers and bicubic."""
    network, image = trained(), torch.rand(1, 3, 40, 40, dtype=torch.float64)
    reach = 2 * 2 + 6
    with torch.no_grad():
        whole, part = network(image), network(image[..., 3:, 5:])
    inner = slice(4 * reach, -4 * reach)
    difference = whole[..., 12:, 20:][..., inner, inner] - part[..., inner, inner]
    assert difference.numel() > 1000
    assert difference.abs().max() < 1e-10
    border = whole[..., 12:, 20:] - part
    assert border.abs().max() > 1e-4, "the border is the one place that may differ"


def test_every_block_has_influence() -> None:
    network, image = trained(), torch.rand(1, 3, 6, 6, dtype=torch.float64)
    network(image).sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in network.parameters())
