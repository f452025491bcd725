"""Reading and writing picture files, compared with numpy arrays."""

from __future__ import annotations

import errno
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.files.picture import Picture, from_pillow, to_pillow
from onestep_sr.sr_models.files.read import read_picture, read_pictures
from onestep_sr.sr_models.files.write import write_picture
from PIL import Image
from places import PHOTOS

PHOTO = PHOTOS / "houses.png"
VALUES = np.asarray(Image.open(PHOTO).convert("RGB"))[:20, :30]


def as_array(pixels: torch.Tensor, top: int = 255) -> np.ndarray:
    return (pixels.double() * top).round().numpy().astype(int).transpose(1, 2, 0)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp"])
def test_rgb_is_read_exactly(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(VALUES).save(path, lossless=True)
    picture = read_picture(path)
    assert np.array_equal(as_array(picture.pixels), VALUES)
    assert picture.alpha is None
    assert picture.bits == 8


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P"])
def test_grey_and_palette_become_three_channels(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(VALUES).convert(mode)
    image.save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert np.array_equal(as_array(picture.pixels), np.asarray(image.convert("RGB")))
    assert (picture.alpha is not None) == (mode == "LA")


def test_palette_transparency_is_alpha(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((3, 2), 1)
    image.save(tmp_path / "a.png", transparency=0)
    picture = read_picture(tmp_path / "a.png")
    assert picture.alpha is not None
    assert picture.alpha[0, 2, 3] == 1
    assert picture.alpha.sum() == 1
    assert as_array(picture.pixels)[2, 3].tolist() == [200, 100, 50]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_survive_reading_and_writing(tmp_path: Path, suffix: str, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (12, 16, channels)).astype(np.uint16)
    source = tmp_path / f"in{suffix}"
    stored = values[..., 0] if channels == 1 else values
    if suffix == ".png":
        source.write_bytes(imagecodecs.png_encode(stored))
    else:
        tifffile.imwrite(source, stored, photometric="minisblack" if channels == 1 else "rgb")
    picture = read_picture(source)
    assert picture.bits == 16
    assert np.array_equal(as_array(picture.pixels, 65535), np.broadcast_to(values[..., :3], (12, 16, 3)))
    write_picture(tmp_path / f"out{suffix}", picture)
    again = read_picture(tmp_path / f"out{suffix}")
    assert torch.equal(again.pixels, picture.pixels)
    assert (again.alpha is None) == (channels < 4)
    if channels == 4:
        assert again.alpha is not None and picture.alpha is not None
        assert torch.equal(again.alpha, picture.alpha)


# How each orientation is stored, from an upright array (EXIF 2.3, tag 0x0112).
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}
UPRIGHT = STORED | {6: STORED[8], 8: STORED[6]}  # the inverses; all others are their own inverse


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_exif_rotation_of_8_bits_is_undone(tmp_path: Path, suffix: str, orientation: int) -> None:
    path, exif = tmp_path / f"a{suffix}", Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](VALUES))
    lossless = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(stored).save(path, exif=exif, **lossless)
    expected = VALUES
    if suffix == ".jpg":  # lossy; Pillow does not apply the rotation by itself
        expected = UPRIGHT[orientation](np.asarray(Image.open(path)))
        assert np.abs(expected.astype(int) - VALUES).mean() < 8
    assert np.array_equal(as_array(read_picture(path).pixels), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_exif_rotation_of_16_bits_is_undone(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"a{suffix}"
    stored = np.ascontiguousarray(STORED[orientation](VALUES)).astype(np.uint16) * 257
    if suffix == ".tif":
        tifffile.imwrite(path, stored, photometric="rgb", extratags=[(0x0112, "H", 1, orientation, True)])
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        path.write_bytes(with_exif(imagecodecs.png_encode(stored), exif.tobytes().removeprefix(b"Exif\0\0")))
    picture = read_picture(path)
    assert picture.bits == 16
    assert np.array_equal(as_array(picture.pixels, 65535), VALUES.astype(int) * 257)


def with_exif(png: bytes, exif: bytes) -> bytes:
    """The PNG file with an eXIf chunk after its header, which takes the first 33 bytes."""
    checksum = zlib.crc32(b"eXIf" + exif)
    return png[:33] + struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", checksum) + png[33:]


def test_cmyk_is_converted_to_rgb(tmp_path: Path) -> None:
    cmyk = np.zeros((16, 16, 4), np.uint8)
    cmyk[:, 8:] = (0, 255, 255, 0)
    Image.frombytes("CMYK", (16, 16), cmyk.tobytes()).save(tmp_path / "a.tif")
    values = as_array(read_picture(tmp_path / "a.tif").pixels)
    assert values[4, 2].tolist() == [255, 255, 255]
    assert values[4, 12].tolist() == [255, 0, 0]


def test_alpha_is_written_or_blended_with_white(tmp_path: Path) -> None:
    alpha = torch.linspace(0, 1, 16).expand(1, 16, 16)
    picture = Picture(torch.zeros(3, 16, 16), alpha)
    write_picture(tmp_path / "a.png", picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png").getchannel("A"))[0], np.arange(16) * 17)
    write_picture(tmp_path / "a.jpg", picture, quality=100)
    ramp = np.asarray(Image.open(tmp_path / "a.jpg").convert("L"), dtype=int)[8]
    assert np.abs(ramp - (255 - np.arange(16) * 17)).max() <= 3


def test_colour_profile_is_kept(tmp_path: Path) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(VALUES).save(tmp_path / "a.png", icc_profile=profile)
    write_picture(tmp_path / "b.jpg", read_picture(tmp_path / "a.png"))
    assert Image.open(tmp_path / "b.jpg").info["icc_profile"] == profile


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("none.png", None),
        ("empty.png", b""),
        ("text.png", b"not a picture"),
        ("cut.png", PHOTO.read_bytes()[:3000]),
        ("cut.jpg", (PHOTO.parent / "bicycle.jpg").read_bytes()[:2500]),
    ],
)
def test_broken_files_are_reported_in_one_sentence(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_picture(tmp_path / name)
    message = str(caught.value)
    assert name in message
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.svg", b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- a drawing --><svg xmlns='x'/>", "is a drawing (SVG)"),
        ("a.jpg", b"\xff\xd8\xff\xf7\0\x0b\x08\0\x10\0\x10\1\1\x11\0", "a kind of JPEG that is not supported"),
    ],
    ids=["SVG", "JPEG-LS"],
)
def test_a_refusal_says_the_true_reason(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_picture(tmp_path / name)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "film.gif", "film.png", "film.webp"])
def test_pillows_limit_of_pixels_is_not_ours_and_is_left_as_it_was(tmp_path, monkeypatch, name) -> None:
    frames = [Image.fromarray(VALUES), Image.fromarray(255 - VALUES)]
    several = {"save_all": True, "append_images": frames[1:], "disposal": 3} if name.startswith("film") else {}
    frames[0].save(tmp_path / name, **several)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / name)
    sequence, other = read_pictures(tmp_path / name), read_pictures(tmp_path / name)
    for picture, again in zip(sequence, other, strict=True):
        assert torch.equal(picture.pixels, again.pixels) and picture.pixels.shape[-2:] == (20, 30)
        assert Image.MAX_IMAGE_PIXELS == 100
    assert sequence.largest == 600 and len(sequence) == 1 + bool(several)


def test_pillows_limit_is_put_back_after_the_last_of_several_threads(tmp_path, monkeypatch) -> None:
    Image.fromarray(VALUES).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(read_picture, [tmp_path / "a.png"] * 100))
    assert len(read) == 100 and Image.MAX_IMAGE_PIXELS == 100


def test_more_pixels_than_this_program_reads_are_refused_with_figures(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("onestep_sr.sr_models.files.read.MAX_PIXELS", 400)
    Image.fromarray(VALUES).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png has 30 x 20 px, too large: split it into parts\.$"):
        read_pictures(tmp_path / "a.png")


def test_a_file_without_permission_is_not_called_broken(tmp_path: Path) -> None:
    Image.fromarray(VALUES).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    if os.access(tmp_path / "a.png", os.R_OK):
        pytest.skip("this user may read every file")
    with pytest.raises(UserError, match="Permission denied"):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"old")

    def half_written(self: Image.Image, path: Path, **options: object) -> None:
        Path(path).write_bytes(b"half")
        raise failure

    monkeypatch.setattr(Image.Image, "save", half_written)
    with pytest.raises((UserError, KeyboardInterrupt)) as caught:
        write_picture(target, Picture(torch.zeros(3, 8, 8)))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert target.read_bytes() == b"old"
    assert isinstance(failure, KeyboardInterrupt) or "the disk is full" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "picture", "named"),
    [
        ("a.xyz", Picture(torch.zeros(3, 8, 8)), ".png"),
        ("a.webp", Picture(torch.zeros(1, 1, 1).expand(3, 8, 16_384)), "16384"),
        ("a.png", Picture(torch.full((3, 8, 8), float("nan"))), "finite"),
        ("gone/a.png", Picture(torch.zeros(3, 8, 8)), "gone"),
    ],
)
def test_files_that_cannot_be_written_are_reported(tmp_path: Path, name: str, picture: Picture, named: str) -> None:
    with pytest.raises(UserError, match=named):
        write_picture(tmp_path / name, picture)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_values_are_rounded_not_truncated(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", Picture(torch.full((3, 8, 8), 127.6 / 255)))
    assert np.asarray(Image.open(tmp_path / "a.png"))[0, 0, 0] == 128
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_pillow_pictures_survive_a_round_trip(mode: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, len(mode)), dtype=np.uint8))
    image.info["icc_profile"] = b"profile"
    result = to_pillow(from_pillow(image))
    assert result.mode == mode and result.info["icc_profile"] == b"profile"
    assert np.array_equal(np.asarray(result), np.asarray(image))
