"""Colour spaces of PNG, JPEG, AVIF and plainer formats: what is read is what is meant."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.files.read import read_picture
from onestep_sr.sr_models.files.write import write_picture
from PIL import Image, ImageCms
from sample_pictures import ALPHA, FRACTIONS, GREY, LIGHT, PHOTO, alpha_of, chunk, deep, distance, png_file

LINEAR, USUAL = struct.pack(">I", 100_000), struct.pack(">I", 45_455)
DEEP_LIGHT = (LIGHT * 65535).round().astype(np.uint16)
CICP_P3, CICP_PQ, CICP_HLG, CICP_SRGB = bytes([12, 13, 0, 1]), bytes([9, 16, 0, 1]), bytes([9, 18, 0, 1]), b"\1\x0d\0\1"


def grey_profile(curve: bytes) -> bytes:
    """An ICC profile of grey (ICC.1:2010): a header, and the curve as its only tag that matters."""
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    table = struct.pack(">I", 2) + b"wtpt" + struct.pack(">II", 156, 20) + b"kTRC" + struct.pack(">II", 176, len(curve))
    head = b"lcms\x02\x40\0\0mntrGRAYXYZ " + bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    body = head.ljust(124, b"\0") + table + white + curve
    return struct.pack(">I", len(body) + 4) + body


SRGB_NUMBERS = np.array([2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045])
TABLE = np.array([0, 4096, 16384, 36864, 65535], ">u2")
CURVES = {
    "linear": b"curv\0\0\0\0" + struct.pack(">I", 0),
    "1.8": b"curv\0\0\0\0" + struct.pack(">IH", 1, 461) + b"\0\0",
    "table": b"curv\0\0\0\0" + struct.pack(">I", 5) + TABLE.tobytes() + b"\0\0",
    "parametric": b"para\0\0\0\0\0\3\0\0" + (SRGB_NUMBERS * 65536).round().astype(">i4").tobytes(),
}


@pytest.mark.parametrize("name", CURVES)
def test_grey_profiles_are_applied_as_littlecms_does(tmp_path: Path, name: str) -> None:
    profile = grey_profile(CURVES[name])
    source = Image.fromarray(GREY)
    expected = ImageCms.profileToProfile(
        source, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    for suffix in ("png", "tif"):
        source.save(tmp_path / f"a.{suffix}", icc_profile=profile)
        picture = read_picture(tmp_path / f"a.{suffix}")
        bright = GREY > 40  # LittleCMS' 8-bit tables are coarse in the darks
        assert distance(picture, np.asarray(expected), bright) < 1.6
        assert picture.icc_profile is None


def test_linear_grey_of_every_depth_becomes_srgb(tmp_path: Path) -> None:
    profile = grey_profile(CURVES["linear"])
    tifffile.imwrite(tmp_path / "a.tif", DEEP_LIGHT[..., 1], photometric="minisblack", iccprofile=profile)
    assert distance(read_picture(tmp_path / "a.tif"), PHOTO[..., 1]) < 0.1
    source = Image.fromarray((LIGHT[..., 1] * 255).round().astype(np.uint8))
    source.save(tmp_path / "a.jpg", icc_profile=profile, quality=100)
    picture = read_picture(tmp_path / "a.jpg")
    assert abs(picture.pixels.mean().item() * 255 - PHOTO[..., 1].mean()) < 1
    write_picture(tmp_path / "b.png", picture)
    assert abs(np.asarray(Image.open(tmp_path / "b.png")).mean() - PHOTO[..., 1].mean()) < 1


@pytest.mark.parametrize(
    ("values", "color", "chunks", "expected"),
    [
        (DEEP_LIGHT, 2, [(b"gAMA", LINEAR)], PHOTO),
        (DEEP_LIGHT[..., 1], 0, [(b"gAMA", LINEAR)], PHOTO[..., 1]),
        (PHOTO, 2, [(b"gAMA", USUAL)], PHOTO),
        (PHOTO, 2, [(b"sRGB", b"\0"), (b"gAMA", LINEAR)], PHOTO),
        (PHOTO, 2, [(b"cICP", CICP_SRGB), (b"gAMA", LINEAR)], PHOTO),
        (DEEP_LIGHT, 2, [(b"cICP", bytes([1, 8, 0, 1]))], PHOTO),
        (PHOTO, 2, [(b"gAMA", struct.pack(">I", 3))], PHOTO),
        (deep(GREY), 0, [], GREY),
    ],
)
def test_transfer_curves_of_png(tmp_path: Path, values: np.ndarray, color: int, chunks: list, expected) -> None:
    assert distance(read_picture(png_file(tmp_path / "a.png", values, color, *chunks)), expected) < 0.1


@pytest.mark.parametrize(("chunk", "name"), [(CICP_PQ, "PQ"), (CICP_HLG, "HLG")])
def test_hdr_is_refused(tmp_path: Path, chunk: bytes, name: str) -> None:
    with pytest.raises(UserError, match=rf"a\.png holds HDR values \({name}\)"):
        read_picture(png_file(tmp_path / "a.png", PHOTO, 2, (b"cICP", chunk)))


def test_limited_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.png holds values of limited range"):
        read_picture(png_file(tmp_path / "a.png", PHOTO, 2, (b"cICP", CICP_SRGB[:3] + b"\0")))


@pytest.mark.parametrize(
    "chunk",
    [
        (b"cICP", CICP_P3),
        (b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)),
    ],
)
def test_other_primaries_get_a_profile(tmp_path: Path, chunk: tuple[bytes, bytes]) -> None:
    picture = read_picture(png_file(tmp_path / "a.png", PHOTO, 2, chunk))
    assert distance(picture, PHOTO) == 0 and picture.icc_profile
    # Display P3's red in linear sRGB (SMPTE EG 432-1 against IEC 61966-2-1): 1.2249, -0.0420, -0.0197.
    profile = ImageCms.ImageCmsProfile(io.BytesIO(picture.icc_profile))
    half_red = Image.new("RGB", (1, 1), (128, 0, 0))
    converted = ImageCms.profileToProfile(half_red, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    light = ((128 / 255 + 0.055) / 1.055) ** 2.4 * 1.2249
    assert abs(converted.getpixel((0, 0))[0] - 255 * (1.055 * light ** (1 / 2.4) - 0.055)) < 2  # pyright: ignore


def test_alpha_of_grey_palettes_and_colour_keys(tmp_path: Path) -> None:
    grey_alpha = np.stack([GREY, ALPHA], axis=-1)
    for values in (grey_alpha, deep(grey_alpha)):
        picture = read_picture(png_file(tmp_path / "a.png", values, 4))
        assert distance(picture, GREY) < 0.01 and np.abs(alpha_of(picture) - ALPHA).max() < 0.01
    key = struct.pack(">3H", *deep(PHOTO[0, 0]))
    picture = read_picture(png_file(tmp_path / "a.png", deep(PHOTO), 2, (b"tRNS", key)))
    assert np.array_equal(alpha_of(picture) == 0, np.equal(PHOTO, PHOTO[0, 0]).all(-1))


def test_grey_of_rgb_profile_and_cmyk_of_rgb_profile_lose_it(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(GREY).save(tmp_path / "a.jpg", icc_profile=profile, quality=100)
    Image.fromarray(PHOTO).convert("CMYK").save(tmp_path / "a.tif", icc_profile=profile)
    grey, cmyk = read_picture(tmp_path / "a.jpg"), read_picture(tmp_path / "a.tif")
    assert distance(grey, GREY) < 4 and distance(cmyk, PHOTO) < 1.01
    assert grey.icc_profile is None and cmyk.icc_profile is None


def test_adobe_cmyk_jpeg_is_no_negative(tmp_path: Path) -> None:
    Image.fromarray(PHOTO).convert("CMYK").save(tmp_path / "a.jpg", quality=100)  # Pillow writes Adobe's inverted ink
    assert distance(read_picture(tmp_path / "a.jpg"), PHOTO) < 6


def cmyk_profile() -> bytes:
    """An ICC v2 printer profile with one table (lut8Type): 2 nodes a side, Lab of white but for L* = 50 (1 - K)."""
    nodes = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), axis=-1).reshape(-1, 4)
    lightness = np.where(nodes[:, 3] == 1, 0, 128)
    lut = np.stack([lightness, np.full(16, 128), np.full(16, 128)], axis=-1).astype(np.uint8).tobytes()
    ramp = bytes(range(256))
    unit = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = b"mft1\0\0\0\0\4\3\2\0" + unit + ramp * 4 + lut + ramp * 3
    tags = struct.pack(">I", 1) + b"A2B0" + struct.pack(">II", 144, len(table))
    head = b"lcms\x02\x40\0\0prtrCMYKLab " + bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    body = head.ljust(124, b"\0") + tags + table
    return struct.pack(">I", len(body) + 4) + body


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_cmyk_goes_through_its_profile(tmp_path: Path, kind: type) -> None:
    ink = np.zeros((16, 16, 4), kind)
    ink[..., 0] = np.iinfo(kind).max
    tifffile.imwrite(tmp_path / "a.tif", ink, photometric="separated", iccprofile=cmyk_profile())
    values = read_picture(tmp_path / "a.tif").pixels.numpy() * 255
    assert np.abs(values - 119).max() < 2.5  # L* = 50 is sRGB's 119; without the profile it is cyan


@pytest.mark.parametrize("suffix", ["ppm", "bmp", "tga", "qoi", "jp2", "dds", "sgi"])
def test_plainer_formats(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(PHOTO).save(tmp_path / f"a.{suffix}")
    assert distance(read_picture(tmp_path / f"a.{suffix}"), PHOTO) == 0


def test_deep_grey_map_is_not_clipped(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 64 48 65535\n" + deep(GREY).astype(">u2").tobytes())
    picture = read_picture(tmp_path / "a.pgm")
    assert distance(picture, GREY) < 0.01 and picture.bits == 16


def test_avif_in_and_out(tmp_path: Path) -> None:
    deep_values = (FRACTIONS * 1023).round().astype(np.uint16)
    (tmp_path / "a.avif").write_bytes(imagecodecs.avif_encode(deep_values, level=100, bitspersample=10))
    picture = read_picture(tmp_path / "a.avif")
    assert picture.bits == 16 and distance(picture, PHOTO) < 4
    write_picture(tmp_path / "b.avif", picture, quality=95)
    assert Image.open(tmp_path / "b.avif").format == "AVIF"
    assert np.abs(np.asarray(Image.open(tmp_path / "b.avif")).mean((0, 1)) - PHOTO.mean((0, 1))).max() < 2
    pq = imagecodecs.avif_encode(deep_values, level=90, bitspersample=10, primaries=9, transfer=16, matrix=9)
    (tmp_path / "c.avif").write_bytes(pq)
    with pytest.raises(UserError, match="HDR values"):
        read_picture(tmp_path / "c.avif")


@pytest.mark.parametrize("name", ["a", "a.jfif", "a.png", "a.txt"])
def test_content_decides_not_the_name(tmp_path: Path, name: str) -> None:
    Image.fromarray(PHOTO).save(tmp_path / name, format="WEBP", lossless=True)
    assert distance(read_picture(tmp_path / name), PHOTO) == 0
    write_picture(tmp_path / "b.jfif", read_picture(tmp_path / name))
    assert Image.open(tmp_path / "b.jfif").format == "JPEG"


def test_the_first_of_several_pictures_in_a_jpeg(tmp_path: Path) -> None:
    first = Image.fromarray(PHOTO)
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[first.rotate(180)], quality=100)
    picture = read_picture(tmp_path / "a.jpg")
    assert distance(picture, PHOTO) < 40 and "1 more pictures" in picture.notices[0]


FTYP = b"\0\0\0\x18ftyp%s\0\0\0\0mif1miaf" + bytes(100)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (FTYP % b"heic", "HEIC|broken|not a supported picture"),
        (FTYP % b"isom", "is a video"),
        (FTYP % b"crx ", "raw file"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(100), "raw file"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100), "JPEG XL|broken"),
        (b"\x76\x2f\x31\x01" + bytes(100), "OpenEXR|broken"),
        (b"%PDF-1.7" + bytes(100), "PDF document"),
        (b"<svg xmlns=''/>", "no pixels"),
        (b"%!PS-Adobe", "PostScript"),
        (b"hello", "not a supported picture"),
    ],
)
def test_refusals_say_what_the_file_is(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UserError, match=reason) as caught:
        read_picture(tmp_path / "a.jpg")
    assert str(caught.value).startswith(str(tmp_path / "a.jpg")) and str(caught.value).endswith(".")


def test_openexr_is_linear_light_with_premultiplied_alpha(tmp_path: Path) -> None:
    exr = pytest.importorskip("OpenEXR")
    alpha = np.full((48, 64, 1), 0.5)
    pixels = np.concatenate([LIGHT * 2 * alpha, alpha], axis=-1).astype(np.float32)
    with exr.File({"compression": exr.ZIP_COMPRESSION, "type": exr.scanlineimage}, {"RGBA": pixels}) as file:
        file.write(str(tmp_path / "a.exr"))
    picture = read_picture(tmp_path / "a.exr")
    dark = LIGHT < 0.5
    expected = np.where(LIGHT * 2 <= 0.0031308, LIGHT * 2 * 12.92, 1.055 * (LIGHT * 2) ** (1 / 2.4) - 0.055)
    assert np.abs(picture.pixels.numpy().transpose(1, 2, 0) - expected)[dark].max() < 1e-4
    assert (alpha_of(picture) == 127.5).all() and picture.bits == 32 and picture.excess is not None


def test_jpeg_xl_is_turned_once(tmp_path: Path) -> None:
    pytest.importorskip("pillow_jxl")
    exif = Image.Exif()
    exif[0x0112] = 6  # which JPEG XL says to ignore: its own header has the orientation
    Image.fromarray(PHOTO).save(tmp_path / "a.jxl", lossless=True, exif=exif.tobytes())
    assert distance(read_picture(tmp_path / "a.jxl"), PHOTO) == 0


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_transparent_grey_of_few_bits(tmp_path: Path, bits: int) -> None:
    levels = 2**bits - 1
    values = GREY.astype(np.int64) * levels // 255
    packed = "".join("0" * 8 + "".join(f"{value:0{bits}b}" for value in row) for row in values)  # no filter
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 64, 48, bits, 0, 0, 0, 0)),
        (b"tRNS", b"\0\1"),
        (b"IDAT", zlib.compress(int(packed, 2).to_bytes(len(packed) // 8, "big"))),
        (b"IEND", b""),
    ]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    picture = read_picture(tmp_path / "a.png")
    assert distance(picture, values * 255 / levels) < 0.01
    assert np.array_equal(alpha_of(picture), np.where(values == 1, 0, 255))


def test_ink_of_a_jpeg_that_is_not_adobes(tmp_path: Path) -> None:
    ink = np.dstack([255 - PHOTO, np.zeros_like(GREY)])
    content = imagecodecs.jpeg8_encode(ink, level=98, colorspace="cmyk", outcolorspace="cmyk")
    start = content.index(b"\xff\xee")  # Adobe's segment
    end = start + 2 + struct.unpack_from(">H", content, start + 2)[0]
    (tmp_path / "a.jpg").write_bytes(content[:start] + content[end:])
    assert abs(read_picture(tmp_path / "a.jpg").pixels.mean(dim=(1, 2)).numpy() * 255 - PHOTO.mean((0, 1))).max() < 0.5


@pytest.mark.parametrize("bits", [12, 16])
def test_deep_jpeg_2000(tmp_path: Path, bits: int) -> None:
    stored = (FRACTIONS * (2**bits - 1)).round().astype(np.uint16)
    content = imagecodecs.jpeg2k_encode(stored, level=0, reversible=True, bitspersample=bits)
    (tmp_path / "a.jp2").write_bytes(content)
    picture = read_picture(tmp_path / "a.jp2")
    assert picture.bits == 16 and distance(picture, stored * (255 / (2**bits - 1))) < 0.01


@pytest.mark.parametrize("top", [65535, 1023])
def test_deep_ppm(tmp_path: Path, top: int) -> None:
    stored = (FRACTIONS * top).round().astype(">u2")
    (tmp_path / "a.ppm").write_bytes(b"P6\n# a comment\n64 48\n%d\n" % top + stored.tobytes())
    picture = read_picture(tmp_path / "a.ppm")
    assert picture.bits == 16 and distance(picture, stored * (255 / top)) < 0.01
