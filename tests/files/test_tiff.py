"""TIFF of every kind of colour, sample and layout, against the values that it was made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.files.animation import Film
from onestep_sr.sr_models.files.read import read_picture, read_pictures
from onestep_sr.sr_models.files.write import write_picture, write_pictures
from PIL import Image, ImageCms
from sample_pictures import ALPHA, FRACTIONS, GREY, LIGHT, PHOTO, alpha_of, deep, distance, picture_of

CMYK = np.asarray(Image.fromarray(PHOTO).convert("CMYK"))
WITH_ALPHA = np.concatenate([PHOTO, ALPHA[..., None]], axis=-1)


def tiff(path: Path, values: np.ndarray, photometric: str, **options: object) -> Path:
    tifffile.imwrite(path / "a.tif", values, photometric=photometric, **options)
    return path / "a.tif"


KINDS = {
    "uint8": (PHOTO, "rgb", {}, 8),
    "uint16": (deep(PHOTO), "rgb", {}, 16),
    "uint32": ((FRACTIONS * (2**32 - 1)).round().astype(np.uint32), "rgb", {}, 16),
    "half": (FRACTIONS.astype(np.float16), "rgb", {}, 32),
    "float": (FRACTIONS.astype(np.float32), "rgb", {}, 32),
    "float, predicted": (FRACTIONS.astype(np.float32), "rgb", {"compression": "zlib", "predictor": True}, 32),
    "double": (FRACTIONS, "rgb", {}, 32),
    "big-endian": (deep(PHOTO), "rgb", {"byteorder": ">"}, 16),
    "BigTIFF": (deep(PHOTO), "rgb", {"bigtiff": True}, 16),
    "planes": (PHOTO.transpose(2, 0, 1), "rgb", {"planarconfig": "separate"}, 8),
    "deep planes": (deep(PHOTO).transpose(2, 0, 1), "rgb", {"planarconfig": "separate"}, 16),
    "tiles": (deep(PHOTO), "rgb", {"tile": (16, 32), "compression": "zlib"}, 16),
    "CMYK": (CMYK, "separated", {}, 8),
    "deep CMYK": (deep(CMYK), "separated", {}, 16),
    "planes of CMYK": (CMYK.transpose(2, 0, 1), "separated", {"planarconfig": "separate"}, 8),
}


@pytest.mark.parametrize("name", KINDS)
def test_colours_of_every_sample_format(tmp_path: Path, name: str) -> None:
    values, photometric, options, bits = KINDS[name]
    picture = read_picture(tiff(tmp_path, values, photometric, **options))
    assert distance(picture, PHOTO) < (1.01 if "CMYK" in name else 0.1)
    assert picture.bits == bits and picture.alpha is None
    assert picture.notices == (("Integers of 32 bits are reduced to 16.",) if name == "uint32" else ())


@pytest.mark.parametrize(
    ("values", "photometric"),
    [
        (GREY, "minisblack"),
        (255 - GREY, "miniswhite"),
        (deep(255 - GREY), "miniswhite"),
        (deep(GREY), "minisblack"),
        ((GREY * (32767 / 255)).round().astype(np.int16), "minisblack"),
        ((GREY / 255).astype(np.float32), "minisblack"),
    ],
)
def test_grey_of_every_sample_format(tmp_path: Path, values: np.ndarray, photometric: str) -> None:
    picture = read_picture(tiff(tmp_path, values, photometric))
    assert distance(picture, GREY) < 0.01
    assert torch.equal(picture.pixels[0], picture.pixels[1]) and torch.equal(picture.pixels[0], picture.pixels[2])


@pytest.mark.parametrize("bits", [1, 2, 4, 10, 12, 14])
def test_bits_that_fill_no_bytes(tmp_path: Path, bits: int) -> None:
    # Packed by hand: each row of grey values ends on a byte.
    values = GREY.astype(np.int64) * (2**bits - 1) // 255
    rows = ["".join(f"{value:0{bits}b}" for value in row) for row in values]
    stored = b"".join(int(row, 2).to_bytes(len(row) // 8, "big") for row in rows)
    holder = np.frombuffer(stored, np.uint8).reshape(48, -1)
    path = tiff(tmp_path, holder, "minisblack")
    with tifffile.TiffFile(path, mode="r+") as file:
        tags = file.pages[0].tags  # pyright: ignore[reportAttributeAccessIssue]
        tags["ImageWidth"].overwrite(64)
        tags["BitsPerSample"].overwrite(bits)
    assert distance(read_picture(path), values * 255 / (2**bits - 1)) < 0.01


def test_one_bit_faxes_and_palettes(tmp_path: Path) -> None:
    dithered = Image.fromarray(GREY).convert("1")
    dithered.save(tmp_path / "a.tif", compression="group4")
    assert distance(read_picture(tmp_path / "a.tif"), np.asarray(dithered.convert("L"))) == 0
    few = Image.fromarray(PHOTO).quantize(200)
    few.save(tmp_path / "b.tif")
    assert distance(read_picture(tmp_path / "b.tif"), np.asarray(few.convert("RGB"))) < 0.01


def lab_of(light: np.ndarray) -> np.ndarray:
    """CIE 15, from linear sRGB adapted to D50 (B. Lindbloom's matrix)."""
    matrix = [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
    xyz = light @ np.array(matrix).T / np.array([0.9642, 1, 0.8249])
    roots = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    a, b = 500 * (roots[..., 0] - roots[..., 1]), 200 * (roots[..., 1] - roots[..., 2])
    return np.stack([116 * roots[..., 1] - 16, a, b], axis=-1)


@pytest.mark.parametrize("photometric", ["cielab", "icclab"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_lab(tmp_path: Path, photometric: str, kind: type) -> None:
    lab, wide = lab_of(LIGHT), kind == np.uint16
    shift, step = (128 if photometric == "icclab" else 0), (256 if wide else 1)
    top = np.iinfo(kind).max if photometric == "cielab" or not wide else 65280
    stored = np.concatenate([lab[..., :1] / 100 * top, (lab[..., 1:] + shift) * step], axis=-1).round().astype(np.int64)
    picture = read_picture(tiff(tmp_path, (stored % (np.iinfo(kind).max + 1)).astype(kind), photometric))
    assert distance(picture, PHOTO) < (0.1 if wide else 6)
    assert abs(picture.pixels.mean(dim=(1, 2)).numpy() * 255 - PHOTO.mean((0, 1))).max() < 0.3


def test_lab_as_littlecms_writes_it(tmp_path: Path) -> None:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    ImageCms.profileToProfile(Image.fromarray(PHOTO), srgb, lab, outputMode="LAB").save(tmp_path / "a.tif")
    assert distance(read_picture(tmp_path / "a.tif"), PHOTO) < 6


@pytest.mark.parametrize("compression", ["raw", "jpeg"])
def test_ycbcr(tmp_path: Path, compression: str) -> None:
    Image.fromarray(PHOTO).convert("YCbCr").save(tmp_path / "a.tif", compression=compression, quality=100)
    expected = np.asarray(Image.open(tmp_path / "a.tif").convert("RGB"))  # libtiff's
    assert distance(read_picture(tmp_path / "a.tif"), expected) < 3


ALPHAS = {
    "unassociated": (WITH_ALPHA, "rgb", ["unassalpha"]),
    "unspecified": (WITH_ALPHA, "rgb", ["unspecified"]),
    "deep": (deep(WITH_ALPHA), "rgb", ["unassalpha"]),
    "CMYK": (deep(np.concatenate([CMYK, ALPHA[..., None]], axis=-1)), "separated", ["unassalpha"]),
}


@pytest.mark.parametrize("name", ALPHAS)
@pytest.mark.parametrize("planes", [False, True])
def test_alpha(tmp_path: Path, name: str, planes: bool) -> None:
    values, photometric, extra = ALPHAS[name]
    layout = {"planarconfig": "separate"} if planes else {}
    stored = np.moveaxis(values, -1, 0) if planes else values
    picture = read_picture(tiff(tmp_path, stored, photometric, extrasamples=extra, **layout))
    assert distance(picture, PHOTO) < 1.01
    assert np.abs(alpha_of(picture) - ALPHA).max() < 0.01


@pytest.mark.parametrize("is_float", [False, True])
def test_premultiplied_alpha_is_divided_out(tmp_path: Path, is_float: bool) -> None:
    stored = np.concatenate([FRACTIONS * (ALPHA / 255)[..., None], (ALPHA / 255)[..., None]], axis=-1)
    stored = stored.astype(np.float32) if is_float else (stored * 65535).round().astype(np.uint16)
    picture = read_picture(tiff(tmp_path, stored, "rgb", extrasamples=["assocalpha"]))
    assert distance(picture, PHOTO, ALPHA > 20) < 0.1
    assert np.abs(alpha_of(picture) - ALPHA).max() < 0.01


def test_grey_with_alpha_and_further_channels(tmp_path: Path) -> None:
    values = deep(np.stack([GREY, ALPHA, ALPHA], axis=-1))
    options = {"extrasamples": ["unassalpha", "unspecified"], "planarconfig": "contig"}
    picture = read_picture(tiff(tmp_path, values, "minisblack", **options))
    assert distance(picture, GREY) < 0.01 and np.abs(alpha_of(picture) - ALPHA).max() < 0.01
    assert picture.notices == ("Extra channels that are not kept: 1.",)


def test_the_alpha_is_the_channel_that_says_so(tmp_path: Path) -> None:
    values = np.dstack([PHOTO, 255 - ALPHA, ALPHA])
    path = tiff(tmp_path, values, "rgb", extrasamples=["unspecified", "unassalpha"], planarconfig="contig")
    assert np.abs(alpha_of(read_picture(path)) - ALPHA).max() < 0.01


def test_an_unspecified_channel_of_zeros_hides_nothing(tmp_path: Path) -> None:
    values = np.concatenate([PHOTO, np.zeros_like(ALPHA)[..., None]], axis=-1)
    assert read_picture(tiff(tmp_path, values, "rgb", extrasamples=["unspecified"])).alpha is None


def test_values_beyond_one_are_said_and_kept_in_floating_point(tmp_path: Path) -> None:
    values = (FRACTIONS * 4 - 0.5).astype(np.float32)
    picture = read_picture(tiff(tmp_path, values, "rgb"))
    assert distance(picture, values.clip(0, 1) * 255) < 0.01
    assert picture.excess is not None and "-0.5 to" in picture.notices[0]
    write_picture(tmp_path / "b.tif", picture)
    assert np.abs(tifffile.imread(tmp_path / "b.tif") - values).max() < 1e-6
    write_picture(tmp_path / "b.png", picture)
    assert distance(read_picture(tmp_path / "b.png"), values.clip(0, 1) * 255) < 0.01


@pytest.mark.parametrize(
    ("values", "photometric", "options", "reason"),
    [
        (GREY.astype(np.int16) - 128, "minisblack", {}, "negative numbers"),
        (GREY.astype(np.complex64), "minisblack", {}, "unsupported type"),
        (np.where(GREY > 128, np.nan, 0).astype(np.float32), "minisblack", {}, "not finite"),
        (np.zeros((3, 16, 16), np.uint16), "minisblack", {"volumetric": True}, "volume"),
        (PHOTO[..., 0], "cfa", {}, "raw file"),
        (CMYK, "separated", {"extratags": [(332, "H", 1, 2, True)]}, "inks other than"),
        (PHOTO, "rgb", {"subfiletype": 1}, "preview only"),
    ],
)
def test_what_cannot_be_read_rightly_is_refused(
    tmp_path: Path, values: np.ndarray, photometric: str, options: dict, reason: str
) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        read_picture(tiff(tmp_path, values, photometric, **options))
    assert str(caught.value).startswith(str(tmp_path)) and str(caught.value).endswith(".")


def test_a_page_with_a_transparency_mask_is_named(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(PHOTO, photometric="rgb")
        writer.write(ALPHA > 127, photometric="minisblack", subfiletype=4)
    pages = read_pictures(tmp_path / "a.tif")
    [picture] = pages
    assert pages.kind == "single" and distance(picture, PHOTO) == 0
    assert picture.notices == ("Pages with a transparency mask that are not used: 1.",)


def test_pages_of_any_size_and_depth(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(PHOTO, photometric="rgb", description="first")
        writer.write(PHOTO[::4, ::4], photometric="rgb", subfiletype=1)  # a preview
        writer.write(deep(WITH_ALPHA[:20]), photometric="rgb", extrasamples=["unassalpha"], description="second")
    pages = read_pictures(tmp_path / "a.tif")
    assert (pages.kind, len(pages)) == ("pages", 2)
    write_pictures(tmp_path / "b.tif", pages, pages.kind, Film(len(pages)))
    for name in ("a.tif", "b.tif"):
        first, second = read_pictures(tmp_path / name)
        assert distance(first, PHOTO) == 0 and first.bits == 8
        assert distance(second, PHOTO[:20]) < 0.01 and second.bits == 16
        assert np.abs(alpha_of(second) - ALPHA[:20]).max() < 0.01
    with Image.open(tmp_path / "b.tif") as image:
        assert image.getexif()[270] == "first"
        image.seek(1)
        assert image.tag_v2[270] == "second"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UserError, match="does not support 2 pages: choose tif"):
        write_pictures(tmp_path / "b.png", pages, pages.kind, Film(len(pages)))


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("has_alpha", [False, True])
def test_every_depth_comes_back(tmp_path: Path, bits: int, has_alpha: bool) -> None:
    source = picture_of(WITH_ALPHA if has_alpha else PHOTO)
    write_picture(tmp_path / "a.tif", type(source)(source.pixels, source.alpha, bits))
    again = read_picture(tmp_path / "a.tif")
    assert again.bits == bits and torch.allclose(again.pixels, source.pixels, atol=1e-6)
    assert (again.alpha is not None) == has_alpha
