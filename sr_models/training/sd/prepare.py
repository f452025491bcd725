"""Turn a folder of pictures into shards of crops, LR counterparts, HR latents and prompts.

Crops are streamed: neither all crops nor a list of them are ever in memory. Every crop of the stream, and so every
shard, depends on the settings alone, so an interrupted run can resume at its first missing shard.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ...canvas.degradation import Degradation
from ...errors import UserError
from ...files.listing import SUFFIXES, caption_of, stream_pictures
from ...files.whole import write_whole
from ..data import enlarged_to, random_window, to_tensor
from .bases import Condition
from .shards import SETTINGS_FILE, list_shards, shard_path, write_prompts, write_tensors

SCALE = 4
ENCODED_AT_ONCE = 4
LISTED_FOLDERS = 8  # whose names are kept at a time
UNIT = 64  # 8 of the VAE, 2 of the transformer's patches, 4 of the scale


@dataclass(frozen=True)
class Partners:
    """Folders of pictures with the same names as the HR ones but for their endings: `lr`, a quarter of their size, to
    be used instead of degraded counterparts, and `targets`, of the same size: results of a multi-step teacher."""

    lr: Path | None = None
    targets: Path | None = None

    @property
    def folders(self) -> list[Path]:
        return [folder for folder in (self.lr, self.targets) if folder is not None]


@dataclass(frozen=True)
class PrepareConfig:
    """Each picture gives `crops` squares of `crop` px. A shard contains up to `shard` of them."""

    crop: int = 512
    crops: int = 4
    shard: int = 64
    seed: int = 0
    degradation: Degradation = field(default_factory=Degradation)
    partners: Partners = field(default_factory=Partners)


@dataclass(frozen=True)
class Encoders:
    """Encode pictures and texts for the network: (n, 3, H, W) in [-1, 1] -> HR latents, scaled; and a text -> its
    condition with one row. `text` is None if captions are not used."""

    latents: Callable[[Tensor], Tensor]
    text: Callable[[str], Condition] | None


Crop = tuple[Path, int]
Report = Callable[[int], None]


def stream_crops(folder: Path, crops: int) -> Iterator[Crop]:
    return ((file, index) for file in stream_pictures(folder) for index in range(crops))


class CropShards(IterableDataset[dict[str, Any]]):
    """The raw content of the shards that are not `done`, in order; each of W workers creates every W-th.

    An item contains `index`; `hr`, `lr` and optionally `target`, lists of pictures; `captions`, a text or None for
    each; and `skipped`, the files that could not be used.
    """

    def __init__(self, folder: Path, config: PrepareConfig, done: set[int]):
        self.folder, self.config, self.done = folder, config, done
        self.listed: dict[Path, dict[str, Path]] = {}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        shards = enumerate(_grouped(stream_crops(self.folder, self.config.crops), self.config.shard))
        missing = (shard for shard in shards if shard[0] not in self.done)
        for index, crops in islice(missing, number, None, workers):
            yield {"index": index, **self._make(index, crops)}

    def _make(self, index: int, crops: list[Crop]) -> dict[str, Any]:
        made: dict[str, list] = {"hr": [], "lr": [], "target": [], "captions": [], "skipped": []}
        for place, (file, _) in enumerate(crops):
            rng = np.random.default_rng((self.config.seed, index * self.config.shard + place))
            try:
                pictures = self._pictures(file, rng)
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
                made["skipped"].append(file)
                continue
            for name, picture in pictures.items():
                made[name].append(to_tensor(picture))
            made["captions"].append(caption_of(file))
        return made

    def _pictures(self, file: Path, rng: np.random.Generator) -> dict[str, Image.Image]:
        """A crop's HR, LR and target. Raises OSError or ValueError if a picture is missing, broken or of wrong size."""
        config, partners = self.config, self.config.partners
        hr = Image.open(file).convert("RGB")
        others = {"lr": (partners.lr, SCALE), "target": (partners.targets, 1)}
        opened = {
            name: (_open_counterpart(self._counterpart(file, folder), hr, shrunk), shrunk)
            for name, (folder, shrunk) in others.items()
            if folder is not None
        }
        hr = hr if opened else enlarged_to(hr, config.crop)
        window = random_window(hr, config.crop, rng, SCALE if opened else 1)
        cut = {"hr": window.cut(hr), **{name: window.cut(image, shrunk) for name, (image, shrunk) in opened.items()}}
        return cut if "lr" in cut else {**cut, "lr": config.degradation(cut["hr"], rng)}

    def _counterpart(self, file: Path, folder: Path) -> Path:
        """The picture in `folder` with the same name but for its ending. Raises FileNotFoundError if there is none."""
        wanted = folder / file.relative_to(self.folder)
        if wanted.parent not in self.listed:
            if len(self.listed) == LISTED_FOLDERS:
                self.listed.clear()
            self.listed[wanted.parent] = {path.stem: path for path in _pictures_in(wanted.parent)}
        found = self.listed[wanted.parent].get(wanted.stem)
        if found is None:
            raise FileNotFoundError(wanted)
        return found


def _open_counterpart(file: Path, hr: Image.Image, shrunk: int) -> Image.Image:
    image = Image.open(file).convert("RGB")
    if image.size != (hr.width // shrunk, hr.height // shrunk):
        raise ValueError(f"{file} has another size than its HR picture")
    return image


def _pictures_in(folder: Path) -> Iterator[Path]:
    """The pictures in a folder, without its subfolders."""
    with os.scandir(folder) as entries:
        yield from sorted(folder / entry.name for entry in entries if Path(entry.name).suffix.lower() in SUFFIXES)


def _grouped(stream: Iterable[Crop], size: int) -> Iterator[list[Crop]]:
    iterator = iter(stream)
    while group := list(islice(iterator, size)):
        yield group


def prepare(
    folder: Path,
    output: Path,
    config: PrepareConfig,
    encoders: Encoders,
    prompts: tuple[Condition, Condition],
    *,
    base: str,
    workers: int = 1,
    report: Report = lambda crops: None,
) -> list[Path]:
    """Create the missing shards. Returns the pictures that were skipped: broken ones, and those without a counterpart
    of the right size.

    `prompts` are the default and the null prompt; `base` names the model, because latents depend on it; `report` is
    called with each shard's number of crops. Raises UserError for a folder without pictures, a crop that does not fit
    the model, and an output folder that was prepared with other settings.
    """
    check(folder, config)
    output.mkdir(parents=True, exist_ok=True)
    _keep_settings(output, {"base": base, "captions": encoders.text is not None, **asdict(config)})
    write_prompts(output, *prompts)
    done = {int(path.stem.split("-")[1]) for path in list_shards(output)}
    report(len(done) * config.shard)
    missing = CropShards(folder, config, done)
    loader = DataLoader(missing, batch_size=None, num_workers=workers, worker_init_fn=_one_thread)
    skipped: dict[Path, None] = {}
    for content in loader:
        skipped |= dict.fromkeys(content["skipped"])
        if content["hr"]:
            write_tensors(shard_path(output, content["index"], len(content["hr"])), _encode(content, encoders))
        report(len(content["captions"]) + len(content["skipped"]))
    if not list_shards(output):
        raise UserError(f"{folder} contains no usable pictures: choose another folder.")
    return list(skipped)


def count_pictures(folder: Path) -> int:
    return sum(1 for _ in stream_pictures(folder))


@torch.no_grad()
def _encode(content: dict[str, Any], encoders: Encoders) -> dict[str, Tensor]:
    tensors = {name: torch.stack(content[name]) for name in ("hr", "lr")}
    tensors["z_h"] = _latents(tensors["hr"], encoders)
    if content["target"]:
        tensors["z_t"] = _latents(torch.stack(content["target"]), encoders)
    texts = [] if encoders.text is None else sorted({text for text in content["captions"] if text})
    rows = {text: row for row, text in enumerate(texts)}
    tensors["caption"] = torch.tensor([rows.get(text, -1) for text in content["captions"]])
    if encoders.text is not None and texts:
        encoded = [encoders.text(text) for text in texts]
        tensors["prompt"] = torch.cat([condition.prompt for condition in encoded]).half()
        tensors["pooled"] = torch.cat([condition.pooled for condition in encoded]).half()
    return tensors


def _latents(pictures: Tensor, encoders: Encoders) -> Tensor:
    parts = [encoders.latents(part.float() / 127.5 - 1).cpu() for part in pictures.split(ENCODED_AT_ONCE)]
    latents = torch.cat(parts).half()
    if not torch.isfinite(latents).all():
        raise UserError("The VAE returned values that are not finite: prepare with --precision bf16 or no.")
    return latents


def check(folder: Path, config: PrepareConfig) -> None:
    """Raises UserError for a folder without pictures, for a crop that does not fit the model, and where the names of
    pictures do not say which belong together."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Choose a folder that contains training pictures.")
    if next(stream_pictures(folder), None) is None:
        raise UserError(f"{folder} contains no pictures ({', '.join(sorted(SUFFIXES))}): choose a folder that does.")
    if config.crop < UNIT or config.crop % UNIT:
        raise UserError(f"Crop {config.crop} does not fit Stable Diffusion: choose a multiple of {UNIT}.")
    for partner in config.partners.folders:
        if not partner.is_dir():
            raise UserError(
                f"{partner} is not a folder. Choose a folder of pictures with the names of those in {folder}."
            )
        for each in (folder, partner):
            _require_unique_names(each)


def _require_unique_names(folder: Path) -> None:
    for parent, _, _ in os.walk(folder):
        seen: dict[str, Path] = {}
        for path in _pictures_in(Path(parent)):
            other = seen.setdefault(path.stem, path)
            if other != path:
                raise UserError(
                    f"{other} and {path} have the same name but for their endings, by which pictures are paired: "
                    "rename or remove one."
                )


def _keep_settings(output: Path, settings: dict[str, Any]) -> None:
    path, text = output / SETTINGS_FILE, json.dumps(settings, indent=1, default=str)
    if path.exists() and json.loads(path.read_text()) != json.loads(text):
        raise UserError(f"{output} was prepared with other settings: use the same ones, or another output folder.")
    write_whole(path, lambda temporary: temporary.write_text(text))


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
