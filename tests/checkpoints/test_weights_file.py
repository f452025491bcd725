"""Reading weights files: names, fp8 scales, endings, GGUF, headers, and low-rank updates that do not add up."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from onestep_sr.sr_models.checkpoints import low_rank
from onestep_sr.sr_models.checkpoints.weights_file import read_weights, without_prefixes
from onestep_sr.sr_models.errors import UserError
from safetensors.torch import save_file


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("module.a.weight", "a.weight"),
        ("_orig_mod.module.a.weight", "a.weight"),
        ("unet._orig_mod.blocks.0.module.conv.weight", "unet.blocks.0.conv.weight"),
        ("state_dict_unet/module.a", "state_dict_unet/a"),
        ("my_module.a", "my_module.a"),
        ("submodule.module", "submodule.module"),
        ("module", "module"),
    ],
)
def test_what_trainers_put_into_names_is_dropped_anywhere(name: str, expected: str) -> None:
    assert without_prefixes({name: 1}) == {expected: 1}


def test_names_that_would_become_one_stay() -> None:
    assert without_prefixes({"a": 1, "module.a": 2}) == {"a": 1, "module.a": 2}


@pytest.mark.parametrize("ending", [".SAFETENSORS", ".SafeTensors", ".PTH", ".Ckpt"])
def test_endings_are_compared_without_case(tmp_path: Path, ending: str) -> None:
    path, weights = tmp_path / f"model{ending}", {"a": torch.arange(3.0)}
    if "SAFE" in ending.upper():
        save_file(weights, path)
    else:
        torch.save(weights, path)
    assert torch.equal(read_weights(path).tensors["a"], weights["a"])


@pytest.mark.parametrize("ending", [".gguf", ".safetensors", ".pth"])
def test_a_gguf_file_has_its_own_sentence(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"sd3{ending}").write_bytes(b"GGUF\3\0\0\0" + bytes(100))
    with pytest.raises(UserError, match=f"sd3{ending} is a GGUF file, which holds a quantized model"):
        read_weights(tmp_path / f"sd3{ending}")


@pytest.mark.parametrize("ending", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("scale", [torch.tensor(0.03), torch.tensor([0.03]), torch.tensor([0.03, 3.0])])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_scales_of_fp8_weights_are_applied(
    tmp_path: Path, ending: str, scale: torch.Tensor, dtype: torch.dtype
) -> None:
    weight = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensors = {"b.weight": weight, f"b.{ending}": scale, "b.scale_input": torch.ones(1), "c.bias": torch.ones(2)}
    save_file(tensors | {"scaled_fp8": torch.zeros(0).to(dtype)}, tmp_path / "m.safetensors")
    found = read_weights(tmp_path / "m.safetensors").tensors
    assert found.keys() == {"b.weight", "c.bias"}
    expected = torch.stack([row * scale.flatten()[-1 if i else 0] for i, row in enumerate(weight.double())])
    assert torch.allclose(found["b.weight"].double(), expected, rtol=2**-8)


def test_fp8_weights_without_scales_stay_as_they_are(tmp_path: Path) -> None:
    save_file({"b.weight": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "m.safetensors")
    assert read_weights(tmp_path / "m.safetensors").tensors["b.weight"].dtype == torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"b.scale_weight": torch.ones(1)}, "is quantized in a form that cannot be read here"),
        ({"b.weight": torch.ones(2).to(torch.uint8), "b.weight_scale": torch.ones(1)}, "is quantized in a form"),
        ({"b.weight": torch.ones(2).to(torch.float8_e5m2), "b.scale_weight": torch.ones(3)}, "does not fit b.weight"),
        ({"b.weight": torch.ones(2).to(torch.float8_e5m2), "b.scale_weight": torch.tensor(torch.nan)}, "does not fit"),
    ],
)
def test_scales_that_cannot_be_applied_are_refused(tmp_path: Path, tensors, words: str) -> None:
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=words):
        read_weights(tmp_path / "m.safetensors")


def test_a_header_of_many_megabytes_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"a": "x" * 2**23}}).encode()
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(UserError, match=r"has a header of 8,388,63. bytes, which weights do not need"):
        read_weights(tmp_path / "m.safetensors")


@pytest.mark.parametrize("name", ["a\nb", "x" * 501, "\x1b[2J"])
def test_a_name_that_spoils_a_sentence_is_refused(tmp_path: Path, name: str) -> None:
    save_file({name: torch.ones(1)}, tmp_path / "m.safetensors")
    with pytest.raises(UserError) as caught:
        read_weights(tmp_path / "m.safetensors")
    assert str(caught.value).isprintable() and "has a weight with an unreadable name" in str(caught.value)


@pytest.mark.parametrize(
    ("tensor", "words"), [(torch.ones([1] * 70), "70-dimensional"), (torch.ones(1).to(torch.complex64), "complex")]
)
def test_weights_that_no_model_has_are_refused(tmp_path: Path, tensor: torch.Tensor, words: str) -> None:
    save_file({"a.weight": tensor}, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=rf"has a {words} weight \(a\.weight\)"):
        read_weights(tmp_path / "m.safetensors")


DOWN, UP = torch.ones(2, 5), torch.ones(3, 2)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"m.alpha": torch.ones(4)}, r"is broken \(m has 4 values as its alpha\)"),
        ({"m.alpha": torch.tensor(torch.nan)}, "not finite"),
        ({"m.lora_A.weight": torch.ones(0, 5), "m.lora_B.weight": torch.ones(3, 0)}, "is broken"),
        ({"m.lora_B.weight": torch.ones(0, 2)}, "is broken"),
    ],
)
def test_low_rank_updates_that_do_not_add_up(tensors: dict[str, torch.Tensor], words: str) -> None:
    with pytest.raises(UserError, match=words):
        low_rank.parse({"m.lora_A.weight": DOWN, "m.lora_B.weight": UP} | tensors, "lora.safetensors")


@pytest.mark.skipif(os.name == "nt", reason="devices differ")
def test_what_is_not_a_file_is_not_called_missing(tmp_path: Path) -> None:
    loop = tmp_path / "loop.safetensors"
    loop.symlink_to(loop)
    cases = {
        Path(os.devnull): "is not a file: choose",
        loop: "is a link that leads to no file: choose",
        tmp_path / "none.pth": "does not exist: check",
    }
    for path, words in cases.items():
        with pytest.raises(UserError, match=f"^{re.escape(str(path))} {words}"):
            read_weights(path)
