"""AdcSR: its published files, its networks in float64 read off these, and what possible mistakes would give."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import small_peft
import torch
import torch.nn.functional as F
from full_size import on_meta
from onestep_sr.sr_models.canvas.color import wavelet
from onestep_sr.sr_models.canvas.resize import resize
from onestep_sr.sr_models.checkpoints.header import Header
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families import adcsr
from onestep_sr.sr_models.families.adcsr import FAMILY, HALF_DECODER, RECIPE
from onestep_sr.sr_models.families.catalogue import describe
from onestep_sr.sr_models.families.convert import convert
from onestep_sr.sr_models.families.loading import load
from onestep_sr.sr_models.networks.adcsr import AdcConfig, AdcUNet, HalfDecoder
from safetensors import safe_open
from small_models import ADCSR, ADCSR_NAME, use_small_networks, write_adcsr
from torch import Tensor

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_adcsr(tmp_path_factory.mktemp("adcsr"))


@pytest.fixture
def file(written, monkeypatch) -> Path:
    use_small_networks(monkeypatch.setattr)
    return written


@pytest.fixture(scope="module")
def image() -> Tensor:
    return 0.4 + 0.22 * torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(3))


class Reference:
    """Both networks in float64, from the published names. What is passed are the places for mistakes."""

    def __init__(self, written: Path, **mistakes: Any):
        self.has = mistakes.get
        content = torch.load(written, weights_only=True)
        half = torch.load(written.with_name("plain.pt"), weights_only=True)
        self.unet = {n.removeprefix("module.body.1."): t.double() for n, t in content.items() if ".body.1." in n}
        middle = {n.removeprefix("module.body.2."): t.double() for n, t in content.items() if ".body.2." in n}
        self.half = {name.removeprefix("decoder."): tensor.double() for name, tensor in half.items()}
        if not mistakes.get("old_middle"):
            self.half |= {f"mid_block.{name}": tensor for name, tensor in middle.items()}
        self.weights = self.unet

    def conv(self, name: str, x: Tensor, **options: Any) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.conv2d(x, weight, self.weights[f"{name}.bias"], padding=weight.shape[-1] // 2, **options)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0)

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        count = next(n for n in (32, 24, 16, 12, 8) if x.shape[1] % n == 0)
        groups = x.reshape(len(x), count // self.has("fewer_groups", 1), -1)
        centred = groups - groups.mean(2, keepdim=True)
        x = (centred / (centred.square().mean(2, keepdim=True) + eps).sqrt()).reshape(x.shape)
        return x * self.weights[f"{name}.weight"][:, None, None] + self.weights[f"{name}.bias"][:, None, None]

    def resnet(self, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        hidden = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x, eps)))
        hidden = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", hidden, eps)))
        return hidden + (self.conv(f"{name}.conv_shortcut", x) if f"{name}.conv_shortcut.weight" in self.weights else x)

    def attention(self, name: str, x: Tensor, heads: int) -> Tensor:
        """Over (positions, channels)."""
        query, key, value = (self.linear(f"{name}.to_{part}", x) for part in "qkv")
        out, size = torch.empty_like(x), x.shape[1] // heads
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = query[:, part] @ key[:, part].T / (self.has("head_size", 1.0) * size) ** 0.5
            out[:, part] = scores.softmax(1) @ value[:, part]
        return self.linear(f"{name}.to_out.0", out)

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def transformer(self, name: str, x: Tensor, heads: int) -> Tensor:
        block = f"{name}.transformer_blocks.0"
        hidden = self.linear(f"{name}.proj_in", self.norm(f"{name}.norm", x, 1e-6)[0].flatten(1).T)
        hidden = hidden + self.attention(f"{block}.attn1", self.layer_norm(f"{block}.norm1", hidden), heads)
        inner = self.linear(f"{block}.ff.net.0.proj", self.layer_norm(f"{block}.norm3", hidden))
        left, right = inner.chunk(2, dim=1)
        gated = F.gelu(left) * right if self.has("gate_first") else left * F.gelu(right)
        hidden = hidden + self.linear(f"{block}.ff.net.2", gated)
        return x + self.linear(f"{name}.proj_out", hidden).T.reshape(x.shape)

    def block(self, level: str, index: int, x: Tensor, heads: int) -> Tensor:
        x = self.resnet(f"{level}.resnets.{index}", x)
        name = f"{level}.attentions.{index}"
        return self.transformer(name, x, heads) if f"{name}.norm.weight" in self.weights else x

    def features(self, lr: Tensor) -> Tensor:
        heads = self.has("heads", ADCSR.heads)
        x = lr.reshape(1, 3, lr.shape[2] // 2, 2, lr.shape[3] // 2, 2).permute(0, 1, 3, 5, 2, 4)
        x = (x.transpose(1, 2).transpose(2, 3) if self.has("phases_first") else x).reshape(1, 12, *x.shape[-2:])
        x = self.conv("conv_in", x)
        skips = [x]
        for n in range(3):
            for index in range(2):
                x = self.block(f"down_blocks.{n}", index, x, heads[n])
                skips.append(x)
            if n < 2:
                x = self.conv(f"down_blocks.{n}.downsamplers.0.conv", x, stride=2)
                skips.append(x)
        x = self.transformer("mid_block.attentions.0", self.resnet("mid_block.resnets.0", x), heads[-1])
        x = self.resnet("mid_block.resnets.1", x)
        for n in range(3):
            for index in range(3):
                pair = [x, skips.pop()]
                x = self.block(
                    f"up_blocks.{n}", index, torch.cat(pair[:: -1 if self.has("skip_first") else 1], 1), heads[2 - n]
                )
            if n < 2:
                x = self.conv(f"up_blocks.{n}.upsamplers.0.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        x = self.norm("conv_norm_out", x, 1e-5)
        return self.conv("conv_out", x if self.has("no_activation") else F.silu(x))

    def picture(self, x: Tensor) -> Tensor:
        self.weights, middle = self.half, "mid_block.attentions.0"
        x = self.resnet("mid_block.resnets.0", x, 1e-6)
        hidden = self.attention(middle, self.norm(f"{middle}.group_norm", x, 1e-6)[0].flatten(1).T, 1)
        x = self.resnet("mid_block.resnets.1", x + hidden.T.reshape(x.shape), 1e-6)
        for n in range(4):
            for index in range(2):
                x = self.resnet(f"up_blocks.{n}.resnets.{index}", x, 1e-6)
            if n < 3:
                x = self.conv(f"up_blocks.{n}.upsamplers.0.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        return self.conv("conv_out", F.silu(self.norm("conv_norm_out", x, 1e-6)))

    def __call__(self, image: Tensor) -> Tensor:
        """The published script: mean and deviation of each channel become those of the LR."""
        lr = image.double() if self.has("from_zero") else image.double() * 2 - 1
        sr, lr = self.picture(self.features(lr)), image.double() * 2 - 1
        if self.has("color", "deviation") == "wavelet":
            sr = wavelet(sr, resize(lr, (sr.shape[2], sr.shape[3])))
        elif self.has("color", "deviation") == "deviation":
            dims = {"dim": (2, 3), "keepdim": True}
            sr = (sr - sr.mean(**dims)) / sr.std(**dims) * lr.std(**dims) + lr.mean(**dims)
        return (sr / 2 + 0.5).clamp(0, 1)


@pytest.fixture(scope="module")
def truth(written, image) -> Tensor:
    plain = adcsr.read_tensors_only(written.with_name(HALF_DECODER))
    torch.save(
        {n.removeprefix("state_dict."): t for n, t in plain.items() if "decoder" in n}, written.with_name("plain.pt")
    )
    result = Reference(written)(image)
    assert result.std() > 0.02 and (result == result.clamp(0.01, 0.99)).float().mean() > 0.5, "something to compare"
    return result


def test_the_result_is_that_of_the_published_files(file, image, truth) -> None:
    result = upscale(load(file).model, image)
    assert result.shape == (1, 3, 128, 192)
    assert (result - truth).abs().max() < TOLERANCE


def test_the_command_line_gives_the_same(file, image, truth, tmp_path, capsys) -> None:
    result = small_peft.on_the_command_line(image, tmp_path, "--model", file, "--scale", 4)
    assert (result - truth).abs().max() < TOLERANCE
    assert "Licence of AdcSR: Apache-2.0" in capsys.readouterr().out


def test_the_single_file_gives_the_same(file, image, truth, tmp_path) -> None:
    single = tmp_path / "adcsr.safetensors"
    assert convert(file, single) == "AdcSR, one step, x4"
    with safe_open(single, "pt") as opened:
        assert opened.metadata() == {"onestep_sr_family": "adcsr", "licence": FAMILY.licence}
    assert torch.equal(upscale(load(single).model, image), upscale(load(file).model, image))
    with pytest.raises(UserError, match=r"adcsr\.safetensors is complete in itself: leave 'half\.ckpt' out"):
        load(single, autoencoder=Path("half.ckpt"))


MISTAKES: dict[str, dict[str, Any]] = {
    "the LR in [0, 1]": {"from_zero": True},
    "pixels unshuffled by place": {"phases_first": True},
    "the decoder's old middle": {"old_middle": True},
    "one head": {"heads": (1, 1, 1)},
    "heads of the unpruned size": {"head_size": 4 / 3},
    "half the groups": {"fewer_groups": 2},
    "the gate first": {"gate_first": True},
    "skips before": {"skip_first": True},
    "no last activation": {"no_activation": True},
    "no colours": {"color": "none"},
    "colours by wavelet": {"color": "wavelet"},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_would_show(written, image, truth, mistake) -> None:
    assert (Reference(written, **MISTAKES[mistake])(image) - truth).abs().max() > 5 * TOLERANCE


@pytest.mark.parametrize(("scale", "size"), [(1, (21, 34)), (2.5, (52, 85)), (4, (84, 136)), (6, (126, 204))])
def test_the_result_has_the_asked_size(file, scale, size) -> None:
    assert upscale(load(file).model, torch.rand(1, 3, 21, 34), UpscaleOptions(scale)).shape[2:] == size


def test_tiles_of_the_network_are_decoded_in_one_piece(file, image) -> None:
    """A decoder's statistics of each tile would give each its own colours."""
    model, shapes = load(file).model, []
    decode = model.codec.decode
    model.codec.decode = lambda latent, stage=None: shapes.append(latent.shape) or decode(latent, stage)
    seen = []
    upscale(model, image, UpscaleOptions(tile=64, overlap=16), progress=lambda *at: seen.append(at[:2]))
    assert shapes == [(1, 24, 16, 24)] and len(seen) > 1


# Files


def published_sizes() -> tuple[dict[str, tuple[int, ...]], int]:
    unet, half = on_meta(AdcUNet), on_meta(lambda: HalfDecoder(AdcConfig().decoder))
    count = sum(p.numel() for network in (unet, half) for p in network.parameters())
    return {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}, count


def test_the_published_sizes() -> None:
    shapes, count = published_sizes()
    assert count == RECIPE.footprint.weights == 456_073_683
    assert shapes["conv_in.weight"] == (240, 12, 3, 3)
    assert shapes["down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj.weight"] == (1920, 240)
    assert not any("time" in name or "attn2" in name for name in shapes)
    assert (RECIPE.scale, RECIPE.tile, RECIPE.multiple, AdcConfig().decoder.factor) == (4, 64, 8, 8)


def test_the_published_name_and_layout_are_recognised(file, tmp_path) -> None:
    assert describe(file) == "AdcSR, one step, x4"
    other = tmp_path / "other.pt"
    torch.save({"body.1.conv_in.weight": torch.zeros(320, 4, 3, 3)}, other)
    assert "is not a supported model" in describe(other)
    assert FAMILY.condition.missing(Header(other, {"body.1.conv_in.weight": (240, 4, 3, 3)}))


def test_the_half_decoder_must_be_there_and_be_one(file, tmp_path) -> None:
    alone = tmp_path / ADCSR_NAME
    alone.symlink_to(file)
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / HALF_DECODER} does not exist: copy {HALF_DECODER}")):
        load(alone)
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": {"encoder.weight": torch.zeros(1)}}, other)
    with pytest.raises(UserError, match=r"^other\.ckpt is not AdcSR's half decoder: choose halfDecoder\.ckpt\.$"):
        load(alone, autoencoder=other)
    assert load(alone, autoencoder=file.with_name(HALF_DECODER)).family is FAMILY


def test_files_that_were_exchanged_are_named(file) -> None:
    half = file.with_name(HALF_DECODER)
    for chosen in (file, None):
        with pytest.raises(UserError) as error:
            load(half, autoencoder=chosen)
        assert str(error.value) == (
            "halfDecoder.ckpt is AdcSR's half decoder: choose net_params_200.pkl, and this file as its autoencoder."
        )
    with pytest.raises(UserError) as error:
        load(file, autoencoder=file)
    assert str(error.value) == (
        "net_params_200.pkl is AdcSR's network, not AdcSR's half decoder: choose halfDecoder.ckpt."
    )


def test_an_incomplete_file_is_refused(file, tmp_path) -> None:
    content = torch.load(file, weights_only=True)
    del content["module.body.1.conv_out.bias"], content["module.body.1.up_blocks.0.resnets.0.conv1.bias"]
    torch.save(content, tmp_path / ADCSR_NAME)
    with pytest.raises(UserError, match=r"lacks 1 weights \(up_blocks\.0\.resnets\.0\.conv1\.bias\)"):
        load(tmp_path / ADCSR_NAME, autoencoder=file.with_name(HALF_DECODER))
