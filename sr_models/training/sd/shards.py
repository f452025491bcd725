"""Prepared training data: safetensors files of crops, their LR counterparts, HR latents and encoded prompts.

A folder of shards contains `prepare.json` (the settings), `prompts.safetensors` (the default and the null prompt), and
files such as `shard-000012-0064.safetensors`, whose name ends with the number of crops:

- `hr` (n, 3, crop, crop) and `lr` (n, 3, crop/4, crop/4), uint8; `z_h` (n, c, crop/8, crop/8), float16; optionally
  `z_t`, the same for a multi-step teacher's results;
- `caption` (n,): the row of the crop's prompt in `prompt` and `pooled`, or -1 for the default prompt.

Rows are read directly from the memory-mapped file, so a data set of any size needs almost no memory.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from ...errors import UserError
from ...files.whole import write_whole
from .bases import Condition

PROMPTS_FILE, SETTINGS_FILE = "prompts.safetensors", "prepare.json"
CROP_TENSORS = ("hr", "lr", "z_h", "z_t")
OPEN_SHARDS = 16  # mapped at the same time in each worker


def shard_path(folder: Path, index: int, count: int) -> Path:
    return folder / f"shard-{index:06}-{count:04}.safetensors"


def list_shards(folder: Path) -> dict[Path, int]:
    """The shards in order, with the number of crops in each."""
    return {path: int(path.stem.split("-")[2]) for path in sorted(folder.glob("shard-*-*.safetensors"))}


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_whole(path, lambda temporary: save_file(whole, temporary))


def write_prompts(folder: Path, default: Condition, null: Condition) -> None:
    tensors = {"default_prompt": default.prompt, "default_pooled": default.pooled}
    tensors |= {"null_prompt": null.prompt, "null_pooled": null.pooled}
    write_tensors(folder / PROMPTS_FILE, {name: tensor.half() for name, tensor in tensors.items()})


def read_prompts(folder: Path) -> tuple[Condition, Condition]:
    """The default and the null prompt, each with one row. Raises UserError if they are missing."""
    if not (folder / PROMPTS_FILE).is_file():
        raise UserError(f"{folder} contains no prepared data ({PROMPTS_FILE} is missing): run onestep-sr prepare.")
    tensors = load_file(folder / PROMPTS_FILE)
    default, null = (Condition(tensors[f"{name}_prompt"], tensors[f"{name}_pooled"]) for name in ("default", "null"))
    return default, null


class ShardSamples(Dataset[dict[str, Tensor]]):
    """An endless sequence of samples: every pass over all crops has a new order, which depends on (seed, pass) only.

    A sample contains `hr`, `lr`, `z_h` and optionally `z_t`, `prompt` (tokens, width) and `pooled` (width,).
    Raises UserError for a folder without shards.
    """

    def __init__(self, folder: Path, seed: int):
        self.folder, self.seed = folder, seed
        self.default, _ = read_prompts(folder)
        shards = list_shards(folder)
        if not shards:
            raise UserError(f"{folder} contains no shards: run onestep-sr prepare again.")
        self.paths, self.ends = list(shards), np.cumsum(list(shards.values()))
        self._open = lru_cache(OPEN_SHARDS)(_open_shard)

    @property
    def count(self) -> int:
        """Crops in all shards."""
        return int(self.ends[-1])

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        order, place = divmod(number, self.count)
        crop = int(self._order(order)[place])
        shard = int(np.searchsorted(self.ends, crop, side="right"))
        row = crop - (int(self.ends[shard - 1]) if shard else 0)
        file = self._open(self.paths[shard])
        sample = {name: file.get_slice(name)[row] for name in CROP_TENSORS if name in file.keys()}  # noqa: SIM118
        caption = int(file.get_slice("caption")[row])
        if caption < 0:
            return sample | {"prompt": self.default.prompt[0], "pooled": self.default.pooled[0]}
        return sample | {name: file.get_slice(name)[caption] for name in ("prompt", "pooled")}

    def _order(self, index: int) -> np.ndarray:
        if getattr(self, "_kept", (None,))[0] != index:
            self._kept = (index, np.random.default_rng((self.seed, index)).permutation(self.count))
        return self._kept[1]

    def settings(self) -> dict[str, Any]:
        """Settings that must match to resume a run."""
        made = json.loads((self.folder / SETTINGS_FILE).read_text())
        return {"count": self.count, "seed": self.seed, "prepared": made}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out memory-mapped files when a worker process gets its copy."""
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open = lru_cache(OPEN_SHARDS)(_open_shard)


def _open_shard(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt").__enter__()
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is broken ({error}): remove it and run onestep-sr prepare again.") from error
