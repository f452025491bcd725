"""Headers of files, and conditions on them, without reading values."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from onestep_sr.sr_models.checkpoints.conditions import (
    All,
    AnyOf,
    Has,
    HasPrefix,
    HasSuffix,
    Kind,
    Metadata,
    Not,
    Shape,
)
from onestep_sr.sr_models.checkpoints.header import Header, header_of, read_header
from onestep_sr.sr_models.checkpoints.weights_file import read_torch, read_weights
from onestep_sr.sr_models.errors import UserError
from safetensors.torch import save_file

TENSORS = {"a.weight": torch.rand(3, 2), "b": torch.rand(5)}
SHAPES = {"a.weight": (3, 2), "b": (5,)}


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "legacy.ckpt"])
def test_a_header_describes_the_files_contents(name, tmp_path) -> None:
    path = tmp_path / name
    prefixed = {f"module.{key}": tensor for key, tensor in TENSORS.items()}
    if path.suffix == ".safetensors":
        save_file(prefixed, path, metadata={"by": "us"})
    else:
        torch.save({"state_dict": prefixed}, path, _use_new_zipfile_serialization=path.suffix != ".ckpt")
    header = read_header(path)
    assert header.shapes == SHAPES and header.name == name
    assert header.kind == ("safetensors" if path.suffix == ".safetensors" else "torch")
    assert header.metadata == ({"by": "us"} if path.suffix == ".safetensors" else {})
    assert header_of(read_weights(path)) == header


def test_tables_in_tables_get_joined_names_and_the_rest_is_metadata(tmp_path) -> None:
    path = tmp_path / "adapters.pkl"
    torch.save({"rank": 4, "unet": {"lora": TENSORS, "modules": ["conv", "to_q"]}, "note": "x"}, path)
    header = read_header(path)
    assert header.shapes == {f"unet/lora/{name}": shape for name, shape in SHAPES.items()}
    assert header.metadata == {"rank": "4", "unet/modules": '["conv", "to_q"]', "note": "x"}
    file = read_weights(path)
    assert torch.equal(file.tensors["unet/lora/a.weight"], TENSORS["a.weight"]) and header_of(file) == header


@pytest.mark.parametrize("zipped", [True, False])
def test_no_values_are_read(tmp_path, zipped, monkeypatch) -> None:
    """Tensors of a torch file are created without memory, and the file is not mapped."""
    torch.save(TENSORS, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    monkeypatch.setattr(torch.UntypedStorage, "from_file", lambda *args: pytest.fail("values were read"))
    assert all(tensor.is_meta for tensor in read_torch(tmp_path / "x.pth", "meta").tensors.values())
    assert read_header(tmp_path / "x.pth").shapes == SHAPES


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_a_header_names_no_scales(tmp_path, name) -> None:
    tensors = {"a.weight": torch.ones(3, 2).to(torch.float8_e5m2), "a.scale_weight": torch.ones(1)}
    (save_file if name.endswith("s") else torch.save)(tensors, tmp_path / name)
    assert read_header(tmp_path / name).shapes == {"a.weight": (3, 2)}
    assert header_of(read_weights(tmp_path / name)) == read_header(tmp_path / name)


@pytest.mark.parametrize("content", ["a" * 2**20, [["x" * 2**20] * 1000] * 1000], ids=["text", "shared lists"])
def test_metadata_that_would_grow_stays_small(tmp_path, content) -> None:
    """A pickle may show one string a million times."""
    torch.save(TENSORS | {"note": content}, tmp_path / "x.pth")
    try:
        header = read_header(tmp_path / "x.pth")
    except UserError as error:
        assert "which weights do not need" in str(error)
    else:
        assert len(header.metadata["note"]) <= 2**20


@pytest.mark.parametrize("reader", [read_header, read_weights])
def test_code_in_a_file_is_refused_by_every_reader(tmp_path, reader) -> None:
    (tmp_path / "x.pth").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(UserError, match=r"posix\.system|nt\.system"):
        reader(tmp_path / "x.pth")


class Attack:
    def __reduce__(self):
        return os.system, ("true",)


def test_gguf_is_known_by_its_first_bytes(tmp_path) -> None:
    for name in ("x.gguf", "x.safetensors"):
        (tmp_path / name).write_bytes(b"GGUF\x03\x00\x00\x00")
        assert read_header(tmp_path / name).kind == "gguf"


HEADER = Header(None, {"in.weight": (8, 4, 3, 3), "in.bias": (8,), "out.weight": (4, 8)}, {"made by": "us"})  # pyright: ignore


@pytest.mark.parametrize(
    ("condition", "missing", "share"),
    [
        (Has("in.weight", "in.bias"), "", 1),
        (Has("in.weight", "mid", "top"), "lacks mid, top", 1 / 3),
        (HasPrefix("out."), "", 1),
        (HasPrefix("mid."), "lacks mid.*", 0),
        (HasSuffix(".bias"), "", 1),
        (HasSuffix(".lora"), "lacks *.lora", 0),
        (Metadata("made by"), "", 1),
        (Metadata("format"), "lacks the metadata 'format'", 0),
        (Kind("safetensors"), "", 1),
        (Kind("gguf"), "is not a gguf file", 0),
        (Shape("in.weight", 8, None, 3, 3), "", 1),
        (Shape("in.weight", 8, None, 1, 1), "has in.weight of shape (8, 4, 3, 3) instead of (8, any, 1, 1)", 0.5),
        (Shape("out.weight", 4), "has out.weight of shape (4, 8) instead of (4)", 0.5),
        (Shape("mid", 4), "lacks mid", 0),
        (All(Has("in.bias"), HasPrefix("out.")), "", 1),
        (All(Has("a"), HasPrefix("out."), Has("b")), "lacks a and lacks b", 1 / 3),
        (AnyOf(Has("a"), Has("in.bias")), "", 1),
        (AnyOf(Has("a", "c"), Has("b", "in.bias")), "lacks b", 0.5),
        (Not(Has("a"), "holds an a"), "", 0),
        (Not(Has("in.bias"), "holds a bias"), "holds a bias", 0),
    ],
)
def test_a_condition_fits_or_says_what_is_missing(condition, missing, share) -> None:
    assert condition.missing(HEADER) == missing
    assert condition.share(HEADER) == pytest.approx(share)
