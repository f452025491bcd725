"""diffusers folders as they are downloaded: with weights, with variants of them, in pieces."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import small_sd3
import small_unet
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from onestep_sr.sr_models.diffusers_host.folder import variant_of
from onestep_sr.sr_models.diffusers_host.sd3_files import open_networks
from onestep_sr.sr_models.diffusers_host.unet import open_base
from onestep_sr.sr_models.diffusers_host.unet_files import open_unet
from onestep_sr.sr_models.diffusers_host.unet_prompts import open_text_encoders
from torch import nn
from transformers import CLIPTextModel

NARROW = (32, 32, 64, 64)
NAME = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], None),
        (["config.json", f"{NAME}.safetensors"], None),
        ([f"{NAME}.fp16.safetensors"], "fp16"),
        ([f"{NAME}.fp16.safetensors", f"{NAME}.bin"], None),
        (["model.bf16.safetensors", "model.fp16.safetensors"], "fp16"),
        (["pytorch_model.bf16.bin"], "bf16"),
        ([f"{NAME}.fp16-00001-of-00002.safetensors", f"{NAME}.safetensors.index.fp16.json"], "fp16"),
        (["model-00001-of-00002.fp16.safetensors"], "fp16"),
        ([f"{NAME}-00001-of-00002.safetensors", f"{NAME}.fp16-00001-of-00001.safetensors"], None),
        (["flax_model.msgpack", "model.onnx"], None),
    ],
)
def test_the_variant_is_found_by_the_names(names: list[str], expected: str | None, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert variant_of(tmp_path) == expected


def as_variant(kind, folder: Path, pieces: str) -> None:
    """Save the weights again as fp16 alone."""
    network = kind.from_pretrained(folder).half()
    shutil.rmtree(folder)
    network.save_pretrained(folder, variant="fp16", max_shard_size=pieces)


def require_halves(found: nn.Module, original: nn.Module) -> None:
    expected = original.half().state_dict()
    assert found.state_dict().keys() == expected.keys()
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name


@pytest.mark.parametrize(
    "variants", [{"transformer": "1MB"}, {"vae": "10GB"}, {"transformer": "10GB", "vae": "100KB"}], ids=str
)
def test_parts_of_which_there_is_only_a_variant_are_opened(variants: dict[str, str], tmp_path: Path) -> None:
    files = small_sd3.write(tmp_path, NARROW)
    kinds = {"transformer": SD3Transformer2DModel, "vae": AutoencoderKL}
    originals = [kind.from_pretrained(files.folder / part) for part, kind in kinds.items()]
    for part, pieces in variants.items():
        as_variant(kinds[part], files.folder / part, pieces)
        assert (len(list((files.folder / part).glob("*.safetensors"))) > 1) == (pieces != "10GB")
    for found, original in zip(open_networks(files.folder, torch.float16), originals, strict=True):
        require_halves(found, original)


def test_variants_of_a_unet_and_its_text_encoder_are_opened(tmp_path: Path) -> None:
    base = small_unet.write(tmp_path / "base")
    original = UNet2DConditionModel.from_pretrained(base / "unet")
    where = {"device": torch.device("cpu"), "dtype": torch.float32}
    expected = open_text_encoders(base, **where)("a cat")
    as_variant(UNet2DConditionModel, base / "unet", "100KB")
    as_variant(CLIPTextModel, base / "text_encoder", "10GB")
    require_halves(open_unet(base, torch.float16)[0], original)
    assert torch.allclose(open_text_encoders(base, **where)("a cat").prompt, expected.prompt, atol=1e-2)


@pytest.mark.parametrize("stated", [None, False, True], ids=["nothing", "false", "true"])
def test_a_vae_is_in_float32_only_if_its_file_asks_for_it(stated: bool | None, tmp_path: Path) -> None:
    """Stable Diffusion 2.1's says nothing about `force_upcast`, SDXL's says true."""
    base = small_unet.write(tmp_path, "2.1-base")
    file = base / "vae" / "config.json"
    config = json.loads(file.read_text())
    config.pop("force_upcast", None)
    file.write_text(json.dumps(config if stated is None else config | {"force_upcast": stated}))
    for dtype in (torch.float16, torch.bfloat16):
        wanted = torch.float32 if stated and dtype == torch.float16 else dtype
        assert open_base(base, dtype).vae.dtype == wanted
