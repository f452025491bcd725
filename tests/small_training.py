"""A small Stable Diffusion 3 and prepared data for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import small_sd3
import torch
from onestep_sr.sr_models.distill import prepare, sd_runs
from onestep_sr.sr_models.distill.sd_runs import PromptSource
from PIL import Image

PHOTOS = Path(__file__).parent / "photos"
NARROW = (32, 32, 64, 64)
CROP = 64
CONFIG = prepare.PrepareConfig(crop=CROP, crops=3, shard=4)


def write_base(root: Path) -> small_sd3.SmallSD3:
    """With a null prompt in the folder `null`."""
    files = small_sd3.write(root, NARROW)
    null = files.root / "null"
    null.mkdir()
    generator = torch.Generator().manual_seed(8)
    torch.save(0.5 * torch.randn(1, 333, 4096, generator=generator), null / "prompt_embeds.pt")
    torch.save(torch.randn(1, 2048, generator=generator), null / "pool_embeds.pt")
    return files


def prepared(
    small: small_sd3.SmallSD3, output: Path, config=CONFIG, folder: Path = PHOTOS, workers=0, **source
) -> list:
    source = {"embeddings": small.embeddings, "null_embeddings": small.root / "null", "captions": False} | source
    where = {"device": torch.device("cpu"), "dtype": torch.float32, "workers": workers, "report": lambda crops: None}
    return sd_runs.prepare_data(folder, output, small.folder, config, PromptSource(**source), **where)


def paired(folder: Path) -> dict[str, Path]:
    """HR pictures with LR ones and a teacher's results under the same names, all of which show the same."""
    generator = np.random.default_rng(0)
    folders = {name: folder / name for name in ("hr", "lr", "targets")}
    for path in folders.values():
        path.mkdir()
    for index in range(3):
        small_picture = Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        large = small_picture.resize((160, 120), Image.Resampling.NEAREST)
        small_picture.save(folders["lr"] / f"{index}.png")
        large.save(folders["hr"] / f"{index}.png")
        large.point(lambda value: 255 - value).save(folders["targets"] / f"{index}.webp", lossless=True)
    (folders["targets"] / "2.webp").unlink()
    return folders
