"""Weights files with damage and bad intent: each has to end in one sentence, in little time and memory.

    python -m onestep_sr.benchmarks.fuzz_weights --count 2000 --seed 1

Valid files (our own model, a TSD-SR LoRA, published networks as zip and as older torch files) are changed at random:
bits, cuts, headers, metadata, pickle instructions; others are hostile pickles and pickles of random instructions. For
each one `describe` and `load` run in a process of their own, forked from one that has imported everything. Counted are
exceptions other than UserError, answers of more than a line, runs over 2 s of processor time, and runs that take more
than 300 MB beyond the file's size. Linux only.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import random
import resource
import signal
import struct
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from onestep_sr.sr_models.core.schedule import ResShiftSchedule
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families import bundled
from onestep_sr.sr_models.families.catalogue import describe
from onestep_sr.sr_models.families.loading import load
from onestep_sr.sr_models.networks.swin_unet import SwinUNet, SwinUNetConfig
from onestep_sr.sr_models.networks.vq_autoencoder import VQAutoencoder
from safetensors.torch import load as load_bytes
from safetensors.torch import save, save_file

SECONDS, MEGABYTES, PATIENCE = 2.0, 300, 20
SMALL = SwinUNetConfig(
    latent_channels=48,
    channels=32,
    multipliers=(1, 1),
    blocks_per_level=1,
    swin_channels=32,
    native_size=16,
    bicubic_skip=4,
)
TRANSFORMER = ("transformer.pos_embed.proj", "transformer.transformer_blocks.0.attn.to_q", "transformer.proj_out")
VAE = ("transformer.encoder.conv_in", "transformer.encoder.mid_block.attentions.0.to_q")


# Valid files


def write_seeds(folder: Path) -> dict[str, bytes]:
    """Small valid files by the names that they have to keep."""
    torch.manual_seed(0)
    bundled.save(folder / "own.safetensors", SwinUNet(SMALL), bundled.Description(SMALL, ResShiftSchedule(steps=4)))
    for name, modules in (("transformer", TRANSFORMER), ("vae", VAE)):
        save_file(_lora(modules), folder / f"{name}.safetensors")
    one = _lora(TRANSFORMER) | {name.replace("transformer.", "vae."): t for name, t in _lora(VAE).items()}
    description = {"format": 1, "method": "tsd-sr", "base": "Stable Diffusion 3 medium"}
    save_file(one, folder / "one.safetensors", metadata={"onestep_sr_lora": json.dumps(description)})
    save_file(
        {"a.weight": torch.ones(4, 4).to(torch.float8_e4m3fn), "a.scale_weight": torch.ones(1)},
        folder / "fp8.safetensors",
    )
    small = {"module." + name: tensor for name, tensor in SwinUNet(SMALL).state_dict().items()}
    torch.save({"state_dict": small, "epoch": 3}, folder / "small.pth")
    torch.save({"params_ema": small}, folder / "legacy.ckpt", _use_new_zipfile_serialization=False)
    torch.save(torch.rand(1, 8), folder / "tensor.pt")
    torch.save(_of_one_number(SwinUNet), folder / "TAD-SR.pth")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _lora(modules: tuple[str, ...]) -> dict[str, torch.Tensor]:
    shapes = {".lora_A.weight": (4, 16), ".lora_B.weight": (8, 4)}
    return {module + end: torch.rand(shape) for module in modules for end, shape in shapes.items()}


def _of_one_number(network: type[torch.nn.Module]) -> dict[str, torch.Tensor]:
    """A full-size state dict in a few megabytes: each tensor is one number seen many times."""
    with torch.device("meta"):
        state = network().state_dict()
    return {name: torch.full((1,), 0.01).half().expand(tensor.shape) for name, tensor in state.items()}


# Changes


Change = Callable[[random.Random, bytes], bytes]


def flip_bits(chance: random.Random, data: bytes) -> bytes:
    changed, reach = bytearray(data), chance.choice((200, 4000, len(data)))
    for _ in range(chance.choice((1, 1, 4, 32))):
        position = chance.randrange(min(reach, len(data)))
        changed[position if chance.random() < 0.7 else -1 - position] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut(chance: random.Random, data: bytes) -> bytes:
    start, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    return chance.choice((data[:end], data[start:], data[:start] + data[end:], data[:end] + data[start:]))


def overwrite(chance: random.Random, data: bytes) -> bytes:
    position, length = chance.randrange(min(len(data), 5000)), chance.choice((1, 4, 8, 64))
    filling = chance.choice((b"\0" * length, b"\xff" * length, chance.randbytes(length)))
    return data[:position] + filling + data[position + length :]


ODD_NUMBERS = (0, -1, 1, 2, 33, 2**31, 2**63, 10**400, 1e308, 0.5)
ODD_VALUES: tuple[Any, ...] = (*ODD_NUMBERS, "", "x", "a\nb", None, True, [], {}, [[]], [0] * 9)
DEEP_JSON = ("[" * 50_000, '{"a":' * 900 + "1" + "}" * 900)
ODD_JSON = (*DEEP_JSON, "", "{", "null", "NaN", "1e999", '"\\ud800"', "9" * 5000, "[]", '{"network": 1}')
ODD_KINDS = ("F64", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F4", "I8", "BOOL", "U64", "C64", "Q", 1)
ODD_PLACES = ([0, 0], [0, 2**63], [5, 1], [-1, 3], [0], "x", [0, 10**30])
ODD_NAMES = ("", "a\nb", "\ud800", "x" * 5000, "transformer.", ".lora_A.weight")


def change_header(chance: random.Random, data: bytes) -> bytes:
    """Of a safetensors file: names, kinds, shapes, places, lengths."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        for _ in range(chance.choice((1, 2, 5))):
            _change_entry(chance, header)
        text = json.dumps(header).encode("utf-8", "surrogatepass")
    except (ValueError, AttributeError, TypeError):
        text = chance.choice(ODD_JSON).encode("utf-8", "surrogatepass")
    claimed = chance.choice((len(text),) * 6 + (0, 2**63, len(text) - 1))
    return claimed.to_bytes(8, "little") + text + data[8 + length :]


def _change_entry(chance: random.Random, header: dict[str, Any]) -> None:
    name = chance.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    kind = chance.randrange(6)
    if kind == 0:
        entry["dtype"] = chance.choice(ODD_KINDS)
    elif kind == 1:
        shape = entry["shape"]
        entry["shape"] = chance.choice(([], [0], [-1], [2**62, 4], [1] * 70, shape[::-1], [shape], "x"))
    elif kind == 2:
        entry["data_offsets"] = chance.choice(ODD_PLACES)
    elif kind == 3:
        new = chance.choice((*ODD_NAMES, name + ".alpha", name + ".scale_weight"))
        header[new] = header.pop(name)
    elif kind == 4:
        header[name.rsplit(".", 2)[0] + chance.choice((".alpha", ".scale_weight"))] = dict(entry)
    else:
        del header[name]


def change_tensors(chance: random.Random, data: bytes) -> bytes:
    """Of a safetensors file: other shapes and kinds under valid names, and names of scales."""
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__")
    tensors = load_bytes(data)
    kinds = (torch.float64, torch.bfloat16, torch.int32, torch.bool, torch.float8_e5m2, torch.complex64)
    for _ in range(chance.choice((1, 2, 4))):
        name = chance.choice(list(tensors))
        ending = chance.choice(("", "", ".alpha", ".scale_weight", ".weight_scale", ".lora_A.weight", ".lora_B.weight"))
        shape = chance.choice(
            ((), (0,), (1,), (4,), (1, 1), (8, 4), (4, 16), (0, 16), (8, 0), (0, 4), tuple(tensors[name].shape))
        )
        value = chance.choice((0.0, 1.0, -1.0, float("nan"), float("inf"), 1e30))
        made = torch.full(shape, value).to(chance.choice(kinds))
        tensors[name.rsplit(".lora_")[0].removesuffix(".weight") + ending if ending else name] = made
    return save(tensors, metadata)


def change_metadata(chance: random.Random, data: bytes) -> bytes:
    """Of a safetensors file: the JSON in it."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = header.setdefault("__metadata__", {"onestep_sr": "{}"})
        key = next(iter(metadata))
        fields = json.loads(metadata[key])
        for _ in range(chance.choice((1, 1, 3))):
            table = chance.choice([fields, *(value for value in fields.values() if isinstance(value, dict))])
            table[chance.choice([*table, "new"])] = chance.choice(ODD_VALUES)
        metadata[key] = chance.choice((json.dumps(fields),) * 4 + ODD_JSON)
        text = json.dumps(header).encode("utf-8", "surrogatepass")
    except (ValueError, AttributeError, TypeError, StopIteration, IndexError):
        return flip_bits(chance, data)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


SNIPPETS = (
    b"cos\nsystem\n",
    b"\x8c\x02os\x8c\x06system\x93",
    b"cbuiltins\nbytearray\n\x8a\x05" + (2**33).to_bytes(5, "little") + b"\x85R",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n)R",
    b"ctorch\nDoubleStorage\n",
    b"\x8a\xff" + b"\x7f" * 255,
    b"X\xff\xff\xff\x7f",
    b"r\xff\xff\xff\x7f",
    b"j\xff\xff\xff\x7f",
    b"\x85" * 2000,
    b"]q\x07h\x07a",
    b"(" * 500,
    b"N" * 5000,
    b"J\xff\xff\xff\xff",
    *(bytes([instruction]) for instruction in b"}])RbQsut\x810."),
)


def change_pickle(chance: random.Random, data: bytes) -> bytes:
    """Of a torch file: instructions put in, left out or replaced; a zip file stays whole around them."""
    if data[:2] != b"PK":
        return _changed_instructions(chance, data, min(len(data), 20_000))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    members[name] = chance.choice((_changed_instructions, _changed_numbers))(chance, members[name], len(members[name]))
    if chance.random() < 0.2:
        members[chance.choice(list(members))] = chance.randbytes(chance.choice((0, 7, 100)))
    return _zip(chance, members)


def _zip(chance: random.Random, members: dict[str, bytes]) -> bytes:
    written = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if chance.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(written, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return written.getvalue()


def _changed_instructions(chance: random.Random, data: bytes, reach: int) -> bytes:
    position, length = chance.randrange(reach), chance.choice((0, 0, 1, 2, 9))
    return data[:position] + chance.choice(SNIPPETS) + data[position + length :]


def _changed_numbers(chance: random.Random, data: bytes, reach: int) -> bytes:
    """Sizes, strides, counts: BININT1, BININT2 and BININT get other values."""
    places = [place for place in range(min(reach, 50_000)) if data[place] in b"KMJ"]
    place = chance.choice(places or [0])
    value = chance.choice((0, 1, -1, 2**31 - 1, 2**20, chance.randrange(300)))
    length = {b"K": 2, b"M": 3}.get(data[place : place + 1], 5)
    return data[:place] + b"J" + struct.pack("<i", value) + data[place + length :]


def hostile_pickle(chance: random.Random, data: bytes) -> bytes:
    """Made by hand, or of random instructions; bare, or in a torch file."""
    size = chance.choice((3, 30, 3000))
    body = b"".join(chance.choice((*SNIPPETS, *pickle.dumps([1, "a", {}]).split())) for _ in range(size))
    doubled = b"]q\0" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(chance.randrange(2, 60)))
    deep = chance.choice((b"\x85", b"]", b"(", b"}")) * chance.choice((1000, 400_000, 600_000))
    made = b"\x80\x02" + chance.choice((body, doubled, b")" + deep, body + deep)) + b"."
    if chance.random() < 0.3:
        return made
    return _zip(chance, {"m/data.pkl": made, "m/data/0": bytes(64), "m/version": b"3\n"})


CHANGES: dict[str, tuple[Change, ...]] = {
    "safetensors": (flip_bits, cut, overwrite, *[change_header] * 2, *[change_tensors] * 2, *[change_metadata] * 3),
    "torch": (flip_bits, cut, overwrite, *[change_pickle] * 3, hostile_pickle),
}


def changed_file(chance: random.Random, seeds: dict[str, bytes]) -> tuple[str, str, bytes]:
    """A seed's name, what was done to it, and the bytes."""
    name = chance.choice(list(seeds))
    kind = "safetensors" if name.endswith("safetensors") else "torch"
    data, done = seeds[name], []
    for _ in range(chance.choice((1, 1, 1, 2))):
        change = chance.choice(CHANGES[kind])
        try:
            data = change(chance, data) or b"\0"
        except Exception:  # the first change left nothing for the second
            data = flip_bits(chance, data)
        done.append(change.__name__)
    return name, "+".join(done), data


# Runs


@dataclass(frozen=True)
class Outcome:
    """What a file led to: `failure` is empty where it ended in one sentence or opened."""

    sentence: str
    failure: str
    seconds: float = 0
    megabytes: float = 0


def examine(path: Path) -> Outcome:
    """Identify and load one file."""
    start, sentence = time.process_time(), ""
    try:
        sentence = describe(path)
        load(path, dtype=torch.float16)
    except UserError as error:
        sentence = str(error)
    except Exception:
        return Outcome(sentence, traceback.format_exc(), time.process_time() - start)
    failure = "" if sentence.isprintable() and len(sentence) < 1000 else f"not one sentence: {sentence!r}"
    return Outcome(sentence, failure, time.process_time() - start)


def examine_apart(path: Path) -> Outcome:
    """The same in a process of its own, with its memory measured."""
    receiver, sender = os.pipe()
    child = os.fork()
    if not child:
        os.close(receiver)
        _report(path, sender)
    os.close(sender)
    with os.fdopen(receiver, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if status or not text:
        return Outcome("", f"the process ended with status {status}", PATIENCE if status == signal.SIGPROF else 0)
    return Outcome(**json.loads(text))


def _report(path: Path, sender: int) -> None:
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    limit = _memory("VmSize") + 6 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _memory("VmRSS")
    outcome = examine(path)
    megabytes = (_memory("VmHWM") - before - path.stat().st_size) / 2**20
    os.write(sender, json.dumps({**vars(outcome), "failure": outcome.failure[-3000:], "megabytes": megabytes}).encode())
    os._exit(0)


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for the files that fail")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chance, found, kinds = random.Random(options.seed), Counter[str](), Counter[str]()
    slowest = largest = Outcome("", "")
    with tempfile.TemporaryDirectory() as folder:
        seeds = write_seeds(Path(folder))
        torch.save(_of_one_number(VQAutoencoder), Path(folder) / "autoencoder_vq_f4.pth")
        for name in seeds:  # what a first run imports is not the file's
            load_error = examine(Path(folder) / name)
            assert not load_error.failure, load_error
        for index in range(options.count):
            name, done, data = changed_file(chance, seeds)
            path = Path(folder) / name
            path.write_bytes(data)
            outcome = examine_apart(path)
            path.write_bytes(seeds[name])
            faults = {"traceback": bool(outcome.failure), "over 2 s": outcome.seconds > SECONDS}
            faults["over 300 MB"] = outcome.megabytes > MEGABYTES
            if any(faults.values()):
                found.update(fault for fault, there in faults.items() if there)
                print(f"{index} {name} {done} {outcome.seconds:.2f} s {outcome.megabytes:.0f} MB {outcome.failure}")
                if options.keep:
                    (options.keep / f"{index}-{name}").write_bytes(data)
            kinds[done.split("+")[0]] += 1
            slowest = max(slowest, outcome, key=attrgetter("seconds"))
            largest = max(largest, outcome, key=attrgetter("megabytes"))
    print(f"{options.count} files: {dict(kinds)}")
    print(f"slowest {slowest.seconds:.2f} s ({slowest.sentence})")
    print(f"largest {largest.megabytes:.0f} MB beyond the file's size ({largest.sentence})")
    print({fault: found[fault] for fault in ("traceback", "over 2 s", "over 300 MB")})


if __name__ == "__main__":
    main()
