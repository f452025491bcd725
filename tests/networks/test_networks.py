"""The networks: published names and sizes, and numbers against float64 code that shares nothing with them."""

import math
import re
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from onestep_sr.sr_models.networks.swin_unet import (
    SwinUNet,
    SwinUNetConfig,
    WindowAttention,
    add_mask,
    border_mask,
    published_window_mask,
    shifted_window_mask,
    timestep_embedding,
    without_autocast,
)
from onestep_sr.sr_models.networks.vq_autoencoder import Quantizer, VQAutoencoder, VQConfig
from reference_swin import ReferenceUNet, attend
from small_swin import SMALL, normal, randomised
from torch import nn

SMALL_VQ = VQConfig(channels=32, multipliers=(1, 2), blocks_per_level=1, codes=16)


# The published layout


def named(prefix: str, *modules: str) -> set[str]:
    return {f"{prefix}.{module}.{kind}" for module in modules for kind in ("weight", "bias")}


def residual_keys(prefix: str, widens: bool) -> set[str]:
    modules = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3"]
    return named(prefix, *modules, *(["skip_connection"] if widens else []))


def swin_keys(prefix: str, shifts: bool) -> set[str]:
    keys = named(prefix, "patch_embed.proj", "patch_unembed.proj")
    for n in (0, 1):
        block = f"{prefix}.blocks.{n}"
        keys |= named(block, "norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        keys |= {f"{block}.attn.relative_position_bias_table", f"{block}.attn.relative_position_index"}
    return keys | ({f"{prefix}.blocks.1.attn_mask"} if shifts else set())


def published_unet_keys() -> set[str]:
    keys = named("time_embed", "0", "2") | named("out", "0", "2") | named("input_blocks.0", "0")
    for index in (1, 2, 4, 5, 7, 8, 10, 11):
        keys |= residual_keys(f"input_blocks.{index}.0", widens=index in (4, 10))
    for index in (3, 6, 9):
        keys |= named(f"input_blocks.{index}.0", "op")
    for index in (1, 4, 7, 10):
        keys |= swin_keys(f"input_blocks.{index}.1", shifts=index != 10)
    keys |= residual_keys("middle_block.0", False) | residual_keys("middle_block.2", False)
    keys |= swin_keys("middle_block.1", shifts=False)
    for index in range(12):
        keys |= residual_keys(f"output_blocks.{index}.0", widens=True)
    for index in (0, 3, 6, 9):
        keys |= swin_keys(f"output_blocks.{index}.1", shifts=index != 0)
    for index in (2, 5, 8):
        keys |= named(f"output_blocks.{index}.1", "conv")
    return keys


def published_vq_keys() -> set[str]:
    keys = {"quantize.embedding.weight"} | named("quant_conv", "") | named("post_quant_conv", "")
    keys = {key.replace("..", ".") for key in keys}
    plain = ("norm1", "conv1", "norm2", "conv2")
    for half in ("encoder", "decoder"):
        keys |= named(half, "conv_in", "norm_out", "conv_out")
        keys |= named(f"{half}.mid.block_1", *plain) | named(f"{half}.mid.block_2", *plain)
        keys |= named(f"{half}.mid.attn_1", "norm", "q", "k", "v", "proj_out")
    for i, j in product(range(3), range(2)):  # 128 -> 128, 128 -> 256, 256 -> 512
        shortcut = ["nin_shortcut"] if j == 0 and i > 0 else []
        keys |= named(f"encoder.down.{i}.block.{j}", *plain, *shortcut)
    for i, j in product(range(3), range(3)):  # 512 -> 512 -> 256 -> 128
        shortcut = ["nin_shortcut"] if j == 0 and i < 2 else []
        keys |= named(f"decoder.up.{i}.block.{j}", *plain, *shortcut)
    for i in (0, 1):
        keys |= named(f"encoder.down.{i}.downsample", "conv") | named(f"decoder.up.{i + 1}.upsample", "conv")
    return keys


def on_meta(network_class):
    with torch.device("meta"):
        return network_class()


def published_unet():
    return SwinUNet(SwinUNetConfig(published_mask=True))


@pytest.mark.parametrize(("network_class", "count"), [(published_unet, 118_593_583), (VQAutoencoder, 55_322_782)])
def test_parameter_counts_are_the_published_ones(network_class, count):
    network = on_meta(network_class)
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    assert all(parameter.is_meta for parameter in network.parameters())


@pytest.mark.parametrize(
    ("network_class", "expected"), [(published_unet, published_unet_keys()), (VQAutoencoder, published_vq_keys())]
)
def test_names_are_the_published_ones(network_class, expected):
    assert set(on_meta(network_class).state_dict()) == expected


def test_shapes_for_non_square_pictures():
    """The published geometry, four levels and windows of eight, at a fraction of the width."""
    config = SwinUNetConfig(channels=32, multipliers=(1, 1, 1, 2), blocks_per_level=1, swin_channels=32)
    latent = torch.rand(2, 3, config.multiple, 2 * config.multiple)
    assert config.multiple == SwinUNetConfig().multiple == 64
    assert SwinUNet(config)(latent, latent, torch.zeros(2)).shape == latent.shape
    vq = VQAutoencoder(VQConfig(channels=32, blocks_per_level=1, codes=8))
    assert vq.config.factor == VQConfig().factor == 4
    assert vq.encode(torch.rand(1, 3, 64, 96)).shape == (1, 3, 16, 24)
    assert vq.decode(torch.rand(1, 3, 16, 24)).shape == (1, 3, 64, 96)


# The Swin U-Net


def test_timestep_embedding():
    result = timestep_embedding(torch.tensor([0, 3, 14]), 32).double()
    for row, t in enumerate((0, 3, 14)):
        angles = [t * 10_000 ** (-i / 16) for i in range(16)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        assert (result[row] - torch.tensor(expected, dtype=torch.float64)).abs().max() < 1e-5


@pytest.mark.parametrize(("height", "width", "window", "shift"), [(8, 12, 4, 2), (16, 8, 8, 4), (4, 8, 4, 2)])
def test_mask_keeps_pixels_apart_that_only_the_wrap_made_neighbours(height, width, window, shift):
    """A pair may attend if its place in the shifted picture differs by as much as in the true one."""
    masks = shifted_window_mask(height, width, window, shift)
    pixels = list(product(range(window), repeat=2))
    assert masks.shape == (height // window * (width // window), window**2, window**2)
    for index, (row, column) in enumerate(product(range(0, height, window), range(0, width, window))):
        for (p, (i, j)), (q, (k, l)) in product(enumerate(pixels), repeat=2):  # noqa: E741
            down = (row + i + shift) % height - (row + k + shift) % height
            right = (column + j + shift) % width - (column + l + shift) % width
            neighbours = (down, right) == (i - k, j - l)
            assert (masks[index, p, q] == 0) == neighbours
            assert masks[index, p, q] in (0, -100)


@pytest.mark.parametrize("make_mask", [shifted_window_mask, published_window_mask])
@pytest.mark.parametrize("side", [8, 16])
@pytest.mark.parametrize(("height", "width"), [(8, 12), (4, 20), (20, 4), (4, 4), (16, 16)])
def test_the_mask_of_any_size_consists_of_four_windows_of_a_square_one(make_mask, side, height, width):
    scores = torch.zeros(2, height // 4, width // 4, 3, 16, 16)
    add_mask(scores, border_mask(make_mask(side, side, 4, 2)))
    expected = make_mask(height, width, 4, 2)[:, None].expand(-1, 3, -1, -1)
    assert all(torch.equal(picture.flatten(0, 1), expected) for picture in scores)


def test_a_network_holds_nothing_after_a_run_that_it_did_not_hold_before():
    """What it kept would stay behind when it moves, and its host would not know of it."""
    network = SwinUNet(SMALL)
    before = tensors_within(network)
    with torch.no_grad():
        network(torch.rand(1, 3, 32, 48), torch.rand(1, 3, 32, 48), torch.zeros(1))
    assert tensors_within(network) == before == {id(tensor) for tensor in network.state_dict(keep_vars=True).values()}


def tensors_within(network: nn.Module) -> set[int]:
    found, seen, left = set(), set(), [network]
    while left:
        held = left.pop()
        if id(held) in seen:
            continue
        seen.add(id(held))
        if isinstance(held, torch.Tensor):
            found.add(id(held))
        elif isinstance(held, nn.Module):
            left += [value for value in vars(held).values() if value is not None]
        elif isinstance(held, dict):
            left += held.values()
        elif isinstance(held, list | tuple | set):
            left += held
    return found


@pytest.mark.parametrize("masked", [False, True])
def test_window_attention(masked):
    window, channels, heads = 4, 64, 2
    attention = randomised(WindowAttention(channels, window, heads))
    x = normal(2, 6, window**2, channels, seed=1)
    mask = shifted_window_mask(8, 12, window, 2) if masked else None
    square = border_mask(shifted_window_mask(16, 16, window, 2)) if masked else None
    result = attention(x, square, columns=3)
    weights = {f"a.{name}": value.double() for name, value in attention.named_parameters()}
    places = list(product(range(window), repeat=2))
    for b, n in product(range(2), range(6)):
        # With a mask, pixels of one window fall into groups that do not see one another.
        seen = torch.ones(16, 16, dtype=torch.bool) if mask is None else mask[n] == 0
        for group in {tuple(row.nonzero().flatten().tolist()) for row in seen}:
            pixels = list(group)
            expected = attend(x[b, n, pixels].double(), [places[p] for p in pixels], weights, "a", window, heads)
            assert (result[b, n, pixels] - expected).abs().max() < 1e-4


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, published_mask=True)], ids=["own mask", "published mask"])
@pytest.mark.parametrize("size", [(8, 8), (8, 16)])
def test_the_network_is_the_published_one(size, config):
    """At the native size (8, 8), with the stored masks, and at another size, with new ones."""
    network = randomised(SwinUNet(config))
    latent, condition, t = normal(2, 3, *size), normal(2, 3, *size, seed=1), torch.tensor([0, 14])
    expected = ReferenceUNet(network.state_dict(), config)(latent, condition, t)
    result = network(latent, condition, t)
    assert result.dtype == torch.float32
    assert expected.std() > 0.1
    assert (result - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_device_without_autocast_gives_the_same_result(dtype, monkeypatch):
    """torch.autocast raises an error there: MPS in torch 2.4 and older, DirectML in every version."""
    network = randomised(SwinUNet(SMALL)).to(dtype)
    inputs = normal(1, 3, 8, 16), normal(1, 3, 8, 16, seed=1), torch.tensor([14])
    expected = network(*inputs)
    monkeypatch.setattr(torch.amp.autocast_mode, "is_autocast_available", lambda kind: False)
    with pytest.raises(RuntimeError, match="unsupported autocast"):
        torch.autocast("cpu")
    assert torch.equal(network(*inputs), expected)


def test_autocast_is_left_where_a_device_has_it():
    with torch.autocast("cpu", torch.bfloat16):
        with without_autocast(torch.device("cpu")):
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")
    with without_autocast(torch.device("privateuseone")):  # DirectML's
        pass


def test_shifted_masks_exist_only_if_the_native_grid_is_larger_than_a_window():
    masked = {name for name, _ in SwinUNet(SMALL).named_buffers() if name.endswith("attn_mask")}
    assert masked == {"input_blocks.1.1.blocks.1.attn_mask", "output_blocks.3.1.blocks.1.attn_mask"}


def test_features_are_the_map_at_the_end_of_each_level_and_the_middle():
    network = randomised(SwinUNet(SMALL))
    latent, condition, t = normal(1, 3, 16, 24), normal(1, 3, 16, 24, seed=1), torch.tensor([2])
    maps = network.features(latent, condition, t)
    assert [tuple(m.shape) for m in maps] == [(1, 32, 16, 24), (1, 64, 8, 12), (1, 64, 8, 12)]
    reference = ReferenceUNet(network.state_dict(), SMALL)
    blocks = reference.encoder(latent, condition, reference.time(t))  # stem, two, shrinking, two, middle
    for found, expected in zip(maps, (blocks[2], blocks[5], blocks[6]), strict=True):
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("factor", [2, 4])
def test_a_network_with_a_bicubic_skip_and_a_zero_head_gives_the_bicubic_picture(factor):
    config = SwinUNetConfig(3 * factor**2, 3, 32, (1, 1), 1, 32, window=4, native_size=8, bicubic_skip=factor)
    network = SwinUNet(config)
    nn.init.zeros_(network.out[2].bias)
    condition = normal(2, 3, 8, 16)
    result = network(normal(2, 3 * factor**2, 8, 16, seed=1), condition, torch.tensor([1, 3]))
    bicubic = F.interpolate(condition, scale_factor=factor, mode="bicubic")
    unshuffled = bicubic.reshape(2, 3, 8, factor, 16, factor).permute(0, 1, 3, 5, 2, 4).reshape(2, -1, 8, 16)
    assert torch.equal(result, unshuffled)


# The VQ autoencoder


def to_diffusers(key: str) -> str:
    """The name that diffusers' VQModel of two levels gives a weight of the published layout."""
    for pattern, replacement in (
        (r"encoder\.down\.(\d)\.block", r"encoder.down_blocks.\1.resnets"),
        (r"encoder\.down\.(\d)\.downsample", r"encoder.down_blocks.\1.downsamplers.0"),
        (r"decoder\.up\.1\.", "decoder.up_blocks.0."),
        (r"decoder\.up\.0\.", "decoder.up_blocks.1."),
        (r"(up_blocks\.\d)\.block", r"\1.resnets"),
        (r"\.upsample\.", ".upsamplers.0."),
        (r"mid\.block_1", "mid_block.resnets.0"),
        (r"mid\.block_2", "mid_block.resnets.1"),
        (r"mid\.attn_1\.norm", "mid_block.attentions.0.group_norm"),
        (r"mid\.attn_1\.proj_out", "mid_block.attentions.0.to_out.0"),
        (r"mid\.attn_1\.([qkv])", r"mid_block.attentions.0.to_\1"),
        ("nin_shortcut", "conv_shortcut"),
        ("norm_out", "conv_norm_out"),
    ):
        key = re.sub(pattern, replacement, key)
    return key


def test_the_vq_autoencoder_gives_what_the_one_of_diffusers_gives():
    diffusers = pytest.importorskip("diffusers")
    ours = randomised(VQAutoencoder(SMALL_VQ))
    theirs = diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=32,
        num_vq_embeddings=16,
        latent_channels=3,
    ).eval()
    weights = {}
    for key, value in ours.state_dict().items():
        name = to_diffusers(key)
        weights[name] = value[..., 0, 0] if ".to_" in name and name.endswith("weight") else value
    theirs.load_state_dict(weights)
    image = normal(2, 3, 16, 24)
    with torch.no_grad():
        latent = theirs.encode(image).latents
        decoded = theirs.decode(latent).sample
    assert latent.std() > 0.1
    assert (ours.encode(image) - latent).abs().max() < 1e-4 * latent.abs().max()
    assert (ours.decode(latent) - decoded).abs().max() < 1e-4 * decoded.abs().max()


def snapped(latent: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
    """Each pixel's nearest code, by looking at all of them in float64."""
    result = torch.empty_like(latent)
    for b, i, j in product(range(latent.shape[0]), range(latent.shape[2]), range(latent.shape[3])):
        distances = (book.double() - latent[b, :, i, j].double()).square().sum(1)
        result[b, :, i, j] = book[distances.argmin()]
    return result


def test_vq_decode_snaps_every_pixel_to_the_nearest_code_and_encode_does_not():
    vq = randomised(VQAutoencoder(SMALL_VQ))
    book = vq.quantize.embedding.weight
    latent = normal(2, 3, 6, 10)
    nearest = snapped(latent, book)
    assert len(nearest.permute(0, 2, 3, 1).reshape(-1, 3).unique(dim=0)) > 3
    assert torch.allclose(vq.decode(latent), vq.decoder(vq.post_quant_conv(nearest)), atol=1e-5)
    encoded = vq.encode(normal(1, 3, 16, 24))
    assert (snapped(encoded, book) - encoded).abs().max() > 0.1
    assert torch.allclose(encoded, vq.quant_conv(vq.encoder(normal(1, 3, 16, 24))))


def test_the_quantizer_gives_the_same_in_chunks():
    quantizer = randomised(Quantizer(SMALL_VQ))
    latent = normal(2, 3, 5, 7)
    quantizer.CHUNK = 11
    assert torch.equal(quantizer(latent), snapped(latent, quantizer.embedding.weight))


def test_the_published_mask_parts_only_left_from_right_in_the_bottom_row_of_windows():
    """Read off a run of SinSR's code on a 16 x 16 map: windows of 8, shifted by 4."""
    masks = published_window_mask(16, 16, 8, 4)
    assert masks.shape == (4, 64, 64)
    assert not masks[:2].any()
    column = torch.arange(64) % 8
    apart = (column[:, None] < 4) != (column[None, :] < 4)
    assert torch.equal(masks[2] == -100, apart)
    assert torch.equal(masks[3], masks[2])


def test_published_networks_use_the_published_mask():
    network = SwinUNet(replace(SMALL, published_mask=True))
    stored = dict(network.named_buffers())["input_blocks.1.1.blocks.1.attn_mask"]
    assert torch.equal(stored, published_window_mask(8, 8, 4, 2))
    assert not torch.equal(stored, shifted_window_mask(8, 8, 4, 2))
