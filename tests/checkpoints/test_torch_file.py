"""Torch files: what they hold equals what torch itself reads, and nothing in them runs."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import struct
import sys
import types
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onestep_sr.sr_models.checkpoints.header import read_header
from onestep_sr.sr_models.checkpoints.pickle_scan import Foreign
from onestep_sr.sr_models.checkpoints.torch_file import read_tensors_only, read_torch_file
from onestep_sr.sr_models.checkpoints.weights_file import read_weights
from onestep_sr.sr_models.errors import UserError
from torch import nn

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
DTYPES += [torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16]


def content() -> dict[str, Any]:
    """Of every kind that torch writes: precisions, views, shared and empty tensors, parameters, plain values."""
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    return {
        "kinds": {str(dtype): (torch.arange(9) % 3).to(dtype) for dtype in DTYPES},
        "views": [base, base.transpose(0, 2), base[1:, ::2], base[0, 0, 0], torch.zeros(1).expand(4, 7)],
        "empty": (torch.empty(0), torch.empty(2, 0, 3)),
        "parameter": nn.Parameter(torch.randn(3)),
        "state": nn.Linear(3, 2).state_dict(),
        "optimizer": torch.optim.AdamW([nn.Parameter(torch.randn(3))]).state_dict(),
        "plain": [1, -1, 2**40, 1.5, "text", None, True, b"", torch.Size([2, 3])],
    }


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, torch.Tensor):
        bits = (
            [t.detach().contiguous().flatten().view(torch.uint8) for t in (found, expected)] if expected.numel() else ()
        )
        same_form = (found.dtype, found.shape, found.stride()) == (expected.dtype, expected.shape, expected.stride())
        return same_form and (not bits or torch.equal(*bits))
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    return found == expected


@pytest.mark.parametrize("layout", ["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_file_reads_as_torch_reads_it(tmp_path: Path, layout: str, protocol: int) -> None:
    path, saved = tmp_path / "content.pth", content()
    if layout == "legacy":  # of newer kinds torch itself cannot read what it wrote there
        saved["kinds"] = {
            kind: tensor for kind, tensor in saved["kinds"].items() if "float8" not in kind and "uint16" not in kind
        }
    saved["plain"] = [value for value in saved["plain"] if not isinstance(value, bytes)]  # a call in protocol 2
    torch.save(saved, path, pickle_protocol=protocol, _use_new_zipfile_serialization=layout == "zip")
    found = read_torch_file(path)
    assert same(found, saved)
    assert same(found, torch.load(path, weights_only=protocol == 2))
    assert found["views"][0].data_ptr() == found["views"][1].data_ptr(), "views share their values"
    outline = read_torch_file(path, "meta")
    assert outline["views"][1].is_meta and outline["views"][1].stride() == saved["views"][1].stride()


def rewrite_pickle(path: Path, change: Any) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, change(data) if name.endswith("/data.pkl") else data)


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_what_stands_beside_weights_is_dropped(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "beside.pth"
    beside = {"psnr": np.float64(31.2), "array": np.arange(3), "dtype": np.dtype("f4"), "tags": {"a"}, "raw": b"12"}
    beside |= {"device": torch.device("cpu"), "precision": torch.float16, "count": collections.Counter("aab"), "n": 3}
    torch.save({"weight": torch.ones(2), **beside}, path, _use_new_zipfile_serialization=layout == "zip")
    file = read_weights(path)
    assert file.tensors.keys() == {"weight"}
    held = read_torch_file(path)
    assert isinstance(held["psnr"], Foreign) and held["precision"] == "torch.float16"


# Lightning and pickled modules


def foreign_class(name: str) -> type:
    """A class of a package that is installed while a file is written, and gone when it is read."""
    package = types.ModuleType("pytorch_lightning")
    made = type(name, (), {"__module__": "pytorch_lightning"})
    setattr(package, name, made)
    sys.modules["pytorch_lightning"] = package
    return made


def test_a_lightning_file_gives_its_tensors_and_its_classes_are_not_imported(tmp_path: Path) -> None:
    path, weights = (
        tmp_path / "halfDecoder.ckpt",
        {"decoder.conv.weight": torch.randn(4, 3), "decoder.conv.bias": torch.ones(4)},
    )
    callback = foreign_class("ModelCheckpoint")
    keeper = callback()
    keeper.best, keeper.limits = torch.tensor(0.5), argparse.Namespace(k=3)
    torch.save({"state_dict": weights, "epoch": 3, "callbacks": {callback: keeper}, "loss": np.float32(2)}, path)
    del sys.modules["pytorch_lightning"]
    found = read_tensors_only(path)
    assert found.keys() == {
        "state_dict.decoder.conv.weight",
        "state_dict.decoder.conv.bias",
        "callbacks.pytorch_lightning.ModelCheckpoint.best",
    }
    assert torch.equal(found["state_dict.decoder.conv.weight"], weights["decoder.conv.weight"])
    assert "pytorch_lightning" not in sys.modules
    with pytest.raises(
        UserError, match=r"contains a call of pytorch_lightning\.ModelCheckpoint, which could run code"
    ) as refused:
        read_weights(path)
    header = read_header(path)
    assert header.shapes == {"decoder.conv.weight": (4, 3), "decoder.conv.bias": (4,)}
    assert header.refused == str(refused.value)


def test_a_pickled_module_gives_its_weights_under_its_own_names(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.GroupNorm(2, 4), nn.BatchNorm2d(4)))
    torch.save(network, tmp_path / "whole.pth")
    assert same(read_tensors_only(tmp_path / "whole.pth"), dict(network.state_dict()))


@pytest.mark.parametrize("name", ["os.system", "pytorch_lightning_evil.run", "builtins.eval", "torch.hub.load"])
def test_only_known_packages_may_be_named(tmp_path: Path, name: str) -> None:
    module, function = name.rsplit(".", 1)
    path = tmp_path / "evil.ckpt"
    torch.save({"a": torch.ones(1), "b": 1}, path)
    rewrite_pickle(
        path, lambda data: b"\x80\x02c%s\n%s\nX\x02\x00\x00\x00ls\x85R." % (module.encode(), function.encode())
    )
    with pytest.raises(UserError, match=f"evil.ckpt contains a call of {name}, which could run code: get it as safe"):
        read_tensors_only(path)


# Hostile pickles. Each runs, or takes memory or minutes, in pickle or torch.load.


def nested(levels: int, opcode: bytes) -> bytes:
    return b"\x80\x02)" + opcode * levels + b"."


def doubled(levels: int) -> bytes:
    """[[x, x], [x, x]] and so on: 2^levels values in a few bytes."""
    body = b"".join(b"](h%ch%ce" % (i, i) + b"q%c" % (i + 1) for i in range(levels))
    return b"\x80\x02]q\x00" + body + b"."


def copies(target: bytes, again: bytes) -> bytes:
    """A tuple (memo 0) and a table (memo 2) of 50,000 values, each of which `again` copies with one instruction."""
    table = b"}q\x02(" + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(20_000)) + b"u"
    return b"\x80\x02(" + b"N" * 50_000 + b"tq\x00" + table + target + b"q\x01" + again * 30_000 + b"."


def tensor_of(storage: int, shape: bytes, strides: bytes, offset: bytes = b"K\x00") -> bytes:
    count = b"J" + struct.pack("<i", storage)
    key = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + count + b"tQ"
    return (
        b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n("
        + key
        + offset
        + shape
        + strides
        + b"\x89}tRs."
    )


def test_a_tensor_as_older_versions_wrote_it(tmp_path: Path) -> None:
    """torch 0.3 called `_rebuild_tensor`, without gradients; a tensor on a GPU names another storage."""
    path = tmp_path / "m.pth"
    torch.save({"a": torch.tensor([3.0, 5.0])}, path)
    data = tensor_of(2, b"K\x02\x85", b"K\x01\x85").replace(b"_v2", b"").replace(b"\x89}tRs.", b"tRs.")
    rewrite_pickle(path, lambda _: data.replace(b"ctorch\nFloat", b"ctorch.cuda\nFloat"))
    assert read_weights(path).tensors["a"].tolist() == [3, 5]


BIG = b"\x8a\x05" + (2**33).to_bytes(5, "little")
HOSTILE = {
    "os.system": (b"cos\nsystem\n(X\x02\x00\x00\x00lstR.", r"a call of os\.system, which could run code"),
    "os.system by protocol 4": (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R.", r"a call of os\.system,"),
    "posix.system by INST": (b"(X\x02\x00\x00\x00lsiposix\nsystem\n.", r"the pickle instruction INST of posix system"),
    "builtins.getattr": (b"\x80\x02c__builtin__\ngetattr\n.", r"a call of builtins\.getattr"),
    "an extension": (b"\x80\x02\x82\x01.", r"the pickle instruction EXT1"),
    "bytearray(2**33)": (b"\x80\x02cbuiltins\nbytearray\n" + BIG + b"\x85R.", r"a call of builtins\.bytearray"),
    "depth by tuples": (nested(100_000, b"\x85"), "values nested deeper than 50"),
    "depth by lists": (b"\x80\x02" + b"]" * 90_000 + b"a" * 89_999 + b".", "values nested deeper than 50"),
    "many instructions": (b"\x80\x02" + b"N" * 600_000 + b".", "more than 200,000 pickle instructions"),
    "doubled lists": (doubled(40), "more than 100,000 values"),
    "one list copied by many calls": (
        copies(b"ctorch\nSize\n", b"h\x01h\x00\x85R"),
        "calls of more than 1,000,000 values",
    ),
    "one tuple of many arguments": (copies(b"ccollections\nCounter\n", b"h\x01h\x00R"), "calls of more than 1,000,000"),
    "one state put into many objects": (
        copies(b"ccollections\nCounter\n)R", b"h\x01h\x02b"),
        "calls of more than 1,000",
    ),
    "a call without a tuple": (b"\x80\x02ctorch\nSize\n]R.", "is cut short or not a torch file"),
    "a list in itself": (b"\x80\x02]q\x00h\x00a.", "values nested deeper than 50"),
    "a tuple as key": (b"\x80\x02})K\x01s.", "a dictionary with a tuple as key"),
    "an odd name": (b"\x80\x04\x8c\x04os\n\x07\x8c\x06system\x93.", r"a call of os\?\?\.system"),
    "a memo of 2^32": (b"\x80\x02}r\xff\xff\xff\xff.", "does not hold a table of weights"),
    "a text of 4 GB": (b"\x80\x02X\xff\xff\xff\xffab.", "is cut short or not a torch file"),
    "a number of 4 GB": (b"\x80\x02\x8b\xff\xff\xff\x7fab.", "is cut short or not a torch file"),
    "a tensor of 2^31": (
        tensor_of(1, BIG + b"\x85", b"K\x01\x85"),
        r"\(a tensor of shape \(8589934592,\) reaches beyond its storage of 1",
    ),
    "a storage of 2^31": (
        tensor_of(2**31 - 1, b"K\x01\x85", b"K\x01\x85"),
        r"\(a storage of 2147483647 values does not",
    ),
    "a negative storage": (tensor_of(-1, b"K\x01\x85", b"K\x01\x85"), r"\(a storage of -1 values"),
    "an offset": (tensor_of(1, b"K\x01\x85", b"K\x01\x85", b"K\x01"), "reaches beyond its storage of 1 values"),
    "a negative stride": (tensor_of(1, b"K\x02\x85", b"J\xff\xff\xff\xff\x85"), r"the strides \(-1,\)\)"),
    "one number 2^33 times": (tensor_of(1, BIG + b"\x85", b"K\x00\x85"), "shows its values many times over"),
    "no STOP": (b"\x80\x02}", "is cut short or not a torch file"),
    "an empty stack": (b"\x80\x02R.", "is cut short or not a torch file"),
    "a mark that is missing": (b"\x80\x02t.", "is cut short or not a torch file"),
    "a call of a tensor": (b"\x80\x02K\x01)R.", "is cut short or not a torch file"),
}


@pytest.mark.parametrize("layout", ["zip", "bare"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_end_in_a_sentence(tmp_path: Path, name: str, layout: str) -> None:
    data, words = HOSTILE[name]
    path = tmp_path / "model.pth"
    if layout == "bare":
        path.write_bytes(data)
        words = (
            words if words.startswith(("a call", "the pickle", "more than 200,000", "a dictionary")) else "model.pth"
        )
    else:
        torch.save({"a": torch.ones(1)}, path)
        rewrite_pickle(path, lambda _: data)
    with pytest.raises(UserError, match=words) as caught:
        read_weights(path)
    assert str(caught.value).startswith("model.pth ") and "\n" not in str(caught.value)


def test_nothing_is_called_even_where_a_name_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name beside the weights is never looked up."""
    called = []
    monkeypatch.setattr(collections, "Counter", called.append)
    torch.save({"a": torch.ones(1)}, tmp_path / "m.pth")
    rewrite_pickle(tmp_path / "m.pth", lambda _: b"\x80\x02ccollections\nCounter\n)R.")
    assert isinstance(read_torch_file(tmp_path / "m.pth"), Foreign) and not called


# Zip files


def zip_of(path: Path, method: int = zipfile.ZIP_STORED, **extra: bytes) -> None:
    torch.save({"a": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in (members | {f"{path.stem}/{name}": data for name, data in extra.items()}).items():
            archive.writestr(name, data)


def test_zip_files_that_torch_does_not_write_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    zip_of(path)
    assert torch.equal(read_weights(path).tensors["a"], torch.zeros(1000))
    for change, words in (
        (lambda: zip_of(path, zipfile.ZIP_DEFLATED), "zip file with compressed, encrypted or overlapping members"),
        (lambda: zip_of(path, **{"constants.pkl": b""}), "is a TorchScript program"),
        (lambda: zip_of(path, byteorder=b"big"), "was written on a big-endian machine"),
        (lambda: zip_of(path, **{"more/data.pkl": b""}), None),
    ):
        change()
        if words is None:
            assert read_weights(path).tensors.keys() == {"a"}
            continue
        with pytest.raises(UserError, match=words):
            read_weights(path)


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    """Two readers may take a different one each."""
    path = tmp_path / "m.pth"
    zip_of(path)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(archive.namelist()[0], pickle.dumps(os.system))
    with pytest.raises(UserError, match="overlapping members"):
        read_weights(path)


def test_a_pickle_of_many_megabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    torch.save({"a": torch.zeros(1), "text": "x" * 2**23}, path)
    with pytest.raises(UserError, match="a pickle of more than 8 MiB, which weights do not need"):
        read_weights(path)


def test_a_zip_directory_of_many_members_takes_no_time(tmp_path: Path) -> None:
    path, buffer = tmp_path / "m.pth", io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for index in range(20_000):
            archive.writestr(str(index), b"")
    path.write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="is cut short or not a torch file"):
        read_weights(path)


def test_bounds_are_beyond_what_checkpoints_need(tmp_path: Path) -> None:
    """2,500 tensors, as many as SDXL has, with their running average."""
    weights = {f"model.diffusion_model.blocks.{i}.attention.weight": torch.ones(1) for i in range(2500)}
    average = {name: torch.ones(1) for name in weights}
    torch.save({"state_dict": weights, "average": average}, tmp_path / "m.ckpt")
    assert len(read_weights(tmp_path / "m.ckpt").tensors) == 2500
