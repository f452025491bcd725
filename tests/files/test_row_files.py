"""Picture files written row by row."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import torch
from formula_model import picture
from onestep_sr.sr_models.files import row_files
from onestep_sr.sr_models.files.picture import Picture
from onestep_sr.sr_models.files.read import read_picture
from onestep_sr.sr_models.files.row_files import RowPicture, write_rows
from onestep_sr.sr_models.files.write import write_picture
from PIL import Image


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [3, 4])
def test_row_writers_lose_nothing(suffix, bits, channels, tmp_path):
    kind, most = (np.uint8, 255) if bits == 8 else (np.uint16, 65535)
    values = np.random.default_rng(0).integers(0, most + 1, (600, 301, channels)).astype(kind)
    pixels = torch.from_numpy(values.astype(np.float64) / most).permute(2, 0, 1)
    rows = RowPicture(lambda top, bottom: pixels[:, top:bottom], 600, 301, channels, bits, b"a profile")
    path = tmp_path / f"a{suffix}"
    write_rows(path, suffix, rows, 95)
    read = read_picture(path)
    both = read.pixels if read.alpha is None else torch.cat([read.pixels, read.alpha])
    assert read.bits == bits and np.array_equal((both * most).round().numpy(), values.transpose(2, 0, 1))
    with Image.open(path) as image:
        assert image.info["icc_profile"] == b"a profile"


def test_tiffs_are_tiled_and_grow_big(tmp_path, monkeypatch):
    monkeypatch.setattr(row_files, "CLASSIC_TIFF_LIMIT", 1000)
    pixels = picture(300, 270)[0]
    write_rows(tmp_path / "a.tif", ".tif", RowPicture(lambda t, b: pixels[:, t:b], 300, 270), 95)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff and file.pages[0].is_tiled
        assert file.asarray().shape == (300, 270, 3)


def test_eight_bit_tiffs_are_written_in_memory_too(tmp_path):
    pixels = picture(9, 9)[0]
    write_picture(tmp_path / "a.tif", Picture(pixels), quality=70)
    assert (read_picture(tmp_path / "a.tif").pixels - pixels).abs().max() <= 0.5 / 255 + 1e-6
