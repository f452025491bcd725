"""Torch's own files (.pth, .pt, .ckpt, .pkl), read without running what they hold.

`torch.load(weights_only=True)` runs no foreign code in recent versions of torch, yet it allocates whatever a pickle
asks for: a `bytearray(2**33)`, or 4 GB for a tensor that claims more values than its storage has. Here a file's pickle
says which part of the file each tensor is, every claim is compared with the file, and only then are tensors made: views
of the file mapped into memory.

There are two layouts. A zip archive holds `data.pkl` and one member per storage, uncompressed. Before torch 1.6 it was
five pickles in a row (magic number, version, system, content, keys of the storages), then each storage's number of
values and the values.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod
from pathlib import Path
from struct import unpack
from typing import IO, Any

import torch
from torch import Tensor

from ..errors import UserError
from .pickle_scan import Foreign, Named, Rules, read_pickle, shown, walked

MAX_READ = 2**23  # of a pickle, and of a zip file's directory: 20,000 tensors take 5 MB
MAX_DIMENSIONS = 16
REPEATED_VALUES = 2**27  # what tensors may show beyond the file's own values, by strides of 0
LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
LOCAL_HEADER = 30

STORAGES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "Untyped": torch.uint8,
}
DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
STORAGE_DTYPES = {f"{m}.{n}Storage": d for n, d in STORAGES.items() for m in ("torch", "torch.cuda", "torch.storage")}
# What stands beside weights and is no reason to refuse them: none of it is made.
BESIDE = {
    "torch.Tensor",
    "torch.device",
    "_codecs.encode",
    "builtins.set",
    "collections.Counter",
    "collections.defaultdict",
    "builtins.dict",
    "builtins.list",
    "builtins.int",
    "builtins.float",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
}
# How Lightning's checkpoints and whole pickled modules name what they hold.
MODULE_TABLES = {"_modules", "_parameters", "_buffers"}
OBJECTS = {"copyreg._reconstructor", "builtins.object", "argparse.Namespace"}
FOREIGN_PACKAGES = (
    "torch.nn",
    "pytorch_lightning",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "torchmetrics",
    "omegaconf",
    "diffusers",
    "ldm",
    "taming",
    "basicsr",
)


class BrokenFileError(Exception):
    """Claims of a file that do not agree with each other; the message says which."""


@dataclass(eq=False)
class Storage:
    """A run of values: `count` of `dtype` from byte `offset` of the file on."""

    dtype: torch.dtype
    count: int
    offset: int = 0

    @property
    def bytes(self) -> int:
        return self.count * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Part:
    """A tensor's place in a storage, counted in values of `dtype`."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def checked(
        cls, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype
    ) -> Part:
        """Raises BrokenFileError where it reaches beyond its storage."""
        if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
            raise BrokenFileError(f"a tensor has {len(shape)} sizes and {len(strides)} strides")
        if not all(type(number) is int and 0 <= number < 2**48 for number in (offset, *shape, *strides)):
            raise BrokenFileError(f"a tensor starts at {offset} and has the shape {shape} and the strides {strides}")
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if prod(shape) and (last + 1) * dtype.itemsize > storage.bytes:
            raise BrokenFileError(f"a tensor of shape {shape} reaches beyond its storage of {storage.count} values")
        return cls(storage, dtype, offset, shape, strides)


def read_torch_file(path: Path, device: str = "cpu", foreign: bool = False) -> Any:
    """What a torch file holds: dict, list, tuple, str, bytes, numbers, None and tensors. What else it holds becomes
    `Foreign`. Tensors are mapped from the file; on the device `meta` they have shapes and no values.

    Args:
        foreign: also read files that name what is in `FOREIGN_PACKAGES`, as Lightning's do.

    Raises UserError for a file that is cut short, or not a torch file, or holds what could run code.
    """
    try:
        with _Bounded(io.FileIO(path)) as file:
            content = (_read_zip if file.read(2) == b"PK" else _read_legacy)(file, _rules(foreign), path)
        return _with_tensors(content, path, device)
    except UserError:
        raise
    except BrokenFileError as error:
        raise UserError(f"{path.name} is broken ({shown(str(error))}): download it again.") from error
    except Exception as error:  # on broken bytes parsers raise what they trip over, of any kind
        raise UserError(f"{path.name} is cut short or not a torch file: download it again.") from error


def read_tensors_only(path: Path) -> dict[str, Tensor]:
    """The tensors of a Lightning checkpoint or a pickled module, by names with dots between; its classes are neither
    imported nor made. Raises UserError as `read_torch_file`, and for a file without tensors."""
    found: dict[str, Tensor] = {}
    waiting = [("", read_torch_file(path, foreign=True))]
    while waiting:
        name, value = waiting.pop()
        entries = value.entries if isinstance(value, Foreign) else value
        if isinstance(entries, dict):
            waiting += [(_joined(name, key), entry) for key, entry in reversed(entries.items())]
        elif isinstance(entries, Tensor):
            found[name] = entries
    if not found:
        raise UserError(f"{path.name} does not hold weights: choose a checkpoint file.")
    return found


def _joined(name: str, key: Any) -> str:
    return name if key in MODULE_TABLES else f"{name}.{key}" if name else str(key)


# What the pickles may hold


def _rules(foreign: bool) -> Rules:
    calls: dict[str, Callable[..., Any]] = {
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_parameter_with_state": _parameter,
        "torch.nn.parameter.Parameter": _parameter,
        "torch._tensor._rebuild_from_type_v2": _subclass,
        "torch.Size": tuple,
        "collections.OrderedDict": _ordered,
    }
    names = {*DTYPES, *STORAGE_DTYPES, *BESIDE}
    return Rules(calls, names | OBJECTS, FOREIGN_PACKAGES) if foreign else Rules(calls, names)


def _tensor(storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *rest: Any) -> Part:
    return Part.checked(storage, offset, shape, strides, storage.dtype)


def _tensor_of_dtype(  # torch's own order of arguments
    storage: Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    requires_grad: bool,
    hooks: Any,
    dtype: Named,
    *rest: Any,
) -> Part:
    return Part.checked(storage, offset, shape, strides, DTYPES[dtype.name])


def _parameter(data: Part, *rest: Any) -> Part:
    return data


def _subclass(function: Named, kind: Named, arguments: tuple[Any, ...], state: Any) -> Part:
    return _rules(False).calls[function.name](*arguments)


def _ordered(pairs: list[Any] | tuple[Any, ...] = ()) -> dict[Any, Any]:
    return {key: value for key, value in pairs if isinstance(key, str | int)}


# The two layouts


class _Bounded(io.BufferedReader):
    """A file that does not hand out much at once, such as a zip file's directory of a gigabyte."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_READ:
            raise ValueError(f"a part of {size} bytes")
        return super().read(MAX_READ if size is None or size < 0 else size)


def _read_zip(file: IO[bytes], rules: Rules, path: Path) -> Any:
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        size = path.stat().st_size
        unique = len(members) == len(archive.infolist()) and sum(info.file_size for info in members.values()) <= size
        if not unique or any(_is_odd(info, size) for info in members.values()):
            raise UserError(
                f"{path.name} is a zip file with compressed, encrypted or overlapping members, which torch does not "
                "write: get it as safetensors."
            )
        (pickled,) = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        root = pickled.removesuffix("data.pkl")
        if root + "constants.pkl" in members:
            raise UserError(f"{path.name} is a TorchScript program, which would have to run: get it as safetensors.")
        if root + "byteorder" in members and archive.read(root + "byteorder") != b"little":
            raise UserError(f"{path.name} was written on a big-endian machine: get it as safetensors.")
        _require_size(members[pickled].file_size, path)
        stored = partial(_stored_in_zip, file, members, root + "data/", {})
        return read_pickle(io.BytesIO(archive.read(pickled)), replace(rules, stored=stored), path.name)


def _is_odd(info: zipfile.ZipInfo, size: int) -> bool:
    compressed = info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size
    return compressed or bool(info.flag_bits & 1) or info.header_offset + LOCAL_HEADER + info.file_size > size


def _stored_in_zip(
    file: IO[bytes], members: dict[str, zipfile.ZipInfo], folder: str, known: dict[str, Storage], key: tuple[Any, ...]
) -> Storage:
    kind, dtype, name, _, count = key
    storage = _storage(kind, dtype, count)
    if name not in known:
        known[name] = replace(storage, offset=_data_offset(file, members[folder + name]))
    if storage.bytes > members[folder + name].file_size or storage.dtype != known[name].dtype:
        raise BrokenFileError(f"a storage of {count} values does not have that many")
    return known[name]


def _data_offset(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    file.seek(info.header_offset)
    header = file.read(LOCAL_HEADER)
    name, extra = unpack("<26x2H", header)
    offset = info.header_offset + LOCAL_HEADER + name + extra
    if offset + info.file_size > file.seek(0, io.SEEK_END):
        raise BrokenFileError("a storage reaches beyond the file")
    return offset


def _read_legacy(file: IO[bytes], rules: Rules, path: Path) -> Any:
    file.seek(0)
    stream, storages = io.BytesIO(file.read(MAX_READ)), dict[str, Storage]()
    first = read_pickle(stream, rules, path.name)
    if first != LEGACY_MAGIC or read_pickle(stream, rules, path.name) != LEGACY_VERSION:
        raise UserError(f"{path.name} is a pickle but not a torch file: get it as safetensors.")
    read_pickle(stream, rules, path.name)  # of the machine that wrote it
    content = read_pickle(stream, replace(rules, stored=partial(_stored_behind, storages)), path.name)
    keys = read_pickle(stream, rules, path.name)
    _require_size(stream.tell(), path)
    _place(storages, keys, file, stream.tell())
    return content


def _stored_behind(known: dict[str, Storage], key: tuple[Any, ...]) -> Storage:
    kind, dtype, name, _, count, view = key
    if view is not None:
        raise BrokenFileError("it has views of storages, which torch 0.3 wrote")
    storage = known.setdefault(name, _storage(kind, dtype, count))
    if (storage.dtype, storage.count) != (STORAGE_DTYPES[dtype.name], count):
        raise BrokenFileError(f"a storage of {count} values does not have that many")
    return storage


def _place(storages: dict[str, Storage], keys: list[str], file: IO[bytes], offset: int) -> None:
    """Tell each storage where its values are."""
    if len(set(keys)) != len(keys) or set(keys) != storages.keys():
        raise BrokenFileError("storages have no values")
    end = file.seek(0, io.SEEK_END)
    for key in keys:
        file.seek(offset)
        (count,) = unpack("<q", file.read(8))
        storages[key].offset = offset + 8
        offset += 8 + storages[key].bytes
        if count != storages[key].count or offset > end:
            raise BrokenFileError(f"a storage of {storages[key].count} values does not have that many")


def _storage(kind: str, dtype: Named, count: int) -> Storage:
    if kind != "storage" or type(count) is not int or not 0 <= count < 2**48:
        raise BrokenFileError(f"a storage of {count} values")
    return Storage(STORAGE_DTYPES[dtype.name], count)


def _require_size(size: int, path: Path) -> None:
    if size >= MAX_READ:
        raise UserError(
            f"{path.name} contains a pickle of more than {MAX_READ // 2**20} MiB, which weights do not need: get it "
            "as safetensors."
        )


# Tensors


def _with_tensors(content: Any, path: Path, device: str) -> Any:
    """The content with tensors in place of their parts."""
    size = path.stat().st_size
    mapped = None if device == "meta" else torch.UntypedStorage.from_file(str(path), False, size)
    left = size + REPEATED_VALUES

    @cache
    def made(part: Part) -> Tensor:
        nonlocal left
        left -= prod(part.shape)
        if left < 0:
            raise UserError(f"{path.name} shows its values many times over, as weights do not: choose another file.")
        if mapped is None:
            return torch.empty_strided(part.shape, part.strides, dtype=part.dtype, device="meta")
        return torch.empty(0, dtype=part.dtype).set_(values(part.storage), part.offset, part.shape, part.strides)

    @cache
    def values(storage: Storage) -> torch.UntypedStorage:
        assert mapped is not None  # noqa: S101 (for the type checker)
        found: Any = mapped[storage.offset : storage.offset + storage.bytes]  # a slice is a storage, too
        return found.clone() if storage.offset % storage.dtype.itemsize else found  # the older layout aligns nothing

    return walked(content, lambda value: made(value) if isinstance(value, Part) else value, path.name)
