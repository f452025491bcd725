"""Fit NIQE's model of clean photographs and write it to sr_models/weights/niqe.safetensors.

    python benchmarks/fit_niqe.py PHOTOS

One crop a photograph (files are grouped by their name up to the last underscore), all sizes from 96 px.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from onestep_sr.sr_models.files.listing import list_images
from onestep_sr.sr_models.files.read import read_picture
from onestep_sr.sr_models.measures.niqe import MODEL_FILE, fit
from torch import Tensor


def one_per_photograph(folder: Path) -> Iterator[Tensor]:
    first = {file.stem.rpartition("_")[0] or file.stem: file for file in reversed(list_images(folder))}
    print(f"{len(first)} photographs")
    for file in first.values():
        yield read_picture(file).pixels


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    fit(one_per_photograph(folder)).save(MODEL_FILE, "one 512 px crop of each of this project's training photographs")
