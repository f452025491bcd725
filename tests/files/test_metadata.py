"""Everything but the pixels survives, in every format and by rows too; read back with Pillow and tifffile."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from onestep_sr.sr_models.files.exif import Exif, parse_exif, to_block
from onestep_sr.sr_models.files.metadata import Metadata, describe
from onestep_sr.sr_models.files.picture import Picture
from onestep_sr.sr_models.files.read import read_picture
from onestep_sr.sr_models.files.row_files import RowPicture, write_rows
from onestep_sr.sr_models.files.write import depth_of, metadata_left_out, profile_left_out, write_picture
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin
from sample_pictures import PHOTO, deep

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description tiff:Orientation="6" tiff:ImageWidth="64" exif:PixelYDimension="48">'
    b"<tiff:ImageLength>48</tiff:ImageLength><dc:title>a title</dc:title></rdf:Description></rdf:RDF></x:xmpmeta>"
)
IPTC = b"\x1c\x02\x78\x00\x09a caption"
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
MADE_BY = {"software": "One-Step SR 1.0", "model": "bundled", "scale": "2", "seed": "7"}
SIGNATURE = "One-Step SR 1.0 (model: bundled, scale: 2, seed: 7)"
FORMATS = ("png", "jpg", "webp", "tif", "avif")
PROMPT = {"parameters": "a tree\nSteps: 4, Seed: 5", "prompt": '{"1":{}}', "workflow": '{"nodes":[]}'}


def exif_of_a_camera(order: bytes = b"MM") -> Image.Exif:
    exif = Image.Exif()
    exif.endian = ">" if order == b"MM" else "<"
    exif[0x010E], exif[0x010F], exif[0x0112], exif[0x0132] = "a description", "TestCam", 6, "2020:05:17 10:11:12"
    photo = {0x9003: "2020:05:17 10:11:12", 0x829D: 2.8, 0x927C: b"a maker's note", 0xA002: 64, 0xA003: 48}
    exif._ifds[0x8769] = photo  # pyright: ignore[reportPrivateUsage]
    exif._ifds[0x8825] = {1: "N", 2: (10.0, 20.0, 30.0), 3: "E", 4: (1.0, 2.0, 3.5)}  # pyright: ignore
    return exif


def source(path: Path, suffix: str) -> Path:
    """A file of the format with everything that Pillow can put into it."""
    image, exif = Image.fromarray(PHOTO), exif_of_a_camera()
    options: dict[str, Any] = {"exif": exif.tobytes(), "icc_profile": SRGB}
    if suffix == "png":
        texts = PngImagePlugin.PngInfo()
        for name, text in (PROMPT | {"Comment": "a comment"}).items():
            texts.add_itxt(name, text)
        texts.add_itxt("XML:com.adobe.xmp", XMP.decode())
        options |= {"pnginfo": texts, "dpi": (300, 300)}
    elif suffix == "tif":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        for tag, value in [*exif.items(), *exif._ifds.items(), (700, XMP), (33723, IPTC)]:  # pyright: ignore
            tags[tag] = value
        options = {"icc_profile": SRGB, "dpi": (300, 300), "tiffinfo": tags}
    else:
        options |= {"xmp": XMP, "comment": "a comment", "dpi": (300, 300)}
    image.save(path / f"in.{suffix}", **options)
    return path / f"in.{suffix}"


def whole(path: Path, picture: Picture) -> None:
    write_picture(path, picture)


def by_rows(path: Path, picture: Picture) -> None:
    rows = picture.pixels if picture.alpha is None else torch.cat([picture.pixels, picture.alpha])
    bits = depth_of(picture.bits, path.suffix)
    height, width = rows.shape[-2:]
    described = {"icc_profile": picture.icc_profile, "metadata": picture.metadata}
    row_picture = RowPicture(lambda top, bottom: rows[:, top:bottom], height, width, len(rows), bits, **described)
    write_rows(path, path.suffix, row_picture, 95)


def enlarged(picture: Picture) -> Picture:
    pixels = picture.pixels.repeat_interleave(2, -1).repeat_interleave(2, -2)
    return replace(picture, pixels=pixels, metadata=describe(picture.metadata, MADE_BY))


Writer = Callable[[Path, Picture], None]
EACH_WAY = pytest.mark.parametrize("write", [whole, by_rows])


@EACH_WAY
@pytest.mark.parametrize("after", FORMATS)
@pytest.mark.parametrize("before", FORMATS)
@pytest.mark.parametrize("bits", [8, 16])
def test_from_every_format_to_every_other(tmp_path: Path, before: str, after: str, bits: int, write: Writer) -> None:
    small = replace(read_picture(source(tmp_path, before)), bits=bits)
    assert small.pixels.shape == (3, 64, 48)  # turned
    write(tmp_path / f"out.{after}", enlarged(small))
    with Image.open(tmp_path / f"out.{after}") as image:
        image.load()
        exif, info = image.getexif(), image.info
        assert (exif[0x010E], exif[0x010F], exif[0x0132]) == ("a description", "TestCam", "2020:05:17 10:11:12")
        assert exif.get(0x0112, 1) == 1
        assert exif[0x0131] == SIGNATURE
        photo, gps = exif.get_ifd(0x8769), exif.get_ifd(0x8825)
        assert (photo[0x9003], photo[0xA002], photo[0xA003]) == ("2020:05:17 10:11:12", 96, 128)
        assert photo[0x829D] == 2.8 and photo[0x927C] == b"a maker's note"
        assert gps == {1: "N", 2: (10.0, 20.0, 30.0), 3: "E", 4: (1.0, 2.0, 3.5)}
        assert info["icc_profile"] == SRGB
        if before not in ("webp", "avif"):  # which have no resolution but EXIF's, where this one has none
            dpi = info.get("dpi") or (exif[0x011A], exif[0x011B])
            assert [round(float(dots)) for dots in dpi] == [300, 300]
        xmp = info.get("xmp") or exif.get(700)
    xmp = xmp.encode() if isinstance(xmp, str) else xmp
    for expected in (b'Orientation="1"', b'ImageWidth="96"', b'PixelYDimension="128"', b"Length>128<", b"a title"):
        assert expected in xmp


def comment_of(path: Path) -> str:
    with Image.open(path) as image:
        value = image.getexif().get_ifd(0x8769)[0x9286]
    code, text = value[:8], value[8:]
    return text.decode("ascii") if code == b"ASCII\0\0\0" else text.decode("utf-16-be")


@EACH_WAY
@pytest.mark.parametrize("bits", [8, 16])
def test_texts_stay_texts_in_png(tmp_path: Path, write: Writer, bits: int) -> None:
    write(tmp_path / "out.png", enlarged(replace(read_picture(source(tmp_path, "png")), bits=bits)))
    with Image.open(tmp_path / "out.png") as image:
        image.load()
        texts = {name: str(text) for name, text in image.text.items()}  # pyright: ignore[reportAttributeAccessIssue]
    assert texts.items() >= (PROMPT | {"Comment": "a comment", "Software": SIGNATURE}).items()


@EACH_WAY
@pytest.mark.parametrize("suffix", ["jpg", "webp", "tif", "avif"])
def test_texts_of_png_go_into_the_user_comment(tmp_path: Path, suffix: str, write: Writer) -> None:
    write(tmp_path / f"out.{suffix}", enlarged(read_picture(source(tmp_path, "png"))))
    comment = comment_of(tmp_path / f"out.{suffix}")
    assert comment.startswith(PROMPT["parameters"])
    assert all(f"{name}: {PROMPT[name]}" in comment for name in ("prompt", "workflow"))


def test_parameters_alone_are_what_automatic1111_reads(tmp_path: Path) -> None:
    picture = Picture(torch.zeros(3, 8, 8), metadata=Metadata(text={"parameters": "ein Gemälde, 木\nSteps: 4"}))
    write_picture(tmp_path / "a.jpg", picture)
    assert comment_of(tmp_path / "a.jpg") == "ein Gemälde, 木\nSteps: 4"
    write_picture(tmp_path / "b.webp", read_picture(tmp_path / "a.jpg"))
    assert comment_of(tmp_path / "b.webp") == "ein Gemälde, 木\nSteps: 4"
    write_picture(tmp_path / "c.png", picture)
    assert Image.open(tmp_path / "c.png").text == {"parameters": "ein Gemälde, 木\nSteps: 4"}  # pyright: ignore


def test_comments(tmp_path: Path) -> None:
    for name, after in (("in.jpg", "out.png"), ("out.png", "out.jpg"), ("out.jpg", "out.gif"), ("out.gif", "b.png")):
        if name == "in.jpg":
            Image.fromarray(PHOTO).save(tmp_path / name, comment="ein schöner Kommentar".encode())
        write_picture(tmp_path / after, read_picture(tmp_path / name))
        with Image.open(tmp_path / after) as image:
            comment = image.info.get("Comment") or image.info["comment"].decode()
        assert comment == "ein schöner Kommentar"


@EACH_WAY
@pytest.mark.parametrize("suffix", FORMATS)
def test_stripping_leaves_the_profile_only(tmp_path: Path, suffix: str, write: Writer) -> None:
    picture = read_picture(source(tmp_path, "png"))
    write(tmp_path / f"out.{suffix}", replace(picture, metadata=describe(picture.metadata, MADE_BY, strip=True)))
    again = read_picture(tmp_path / f"out.{suffix}")
    assert again.metadata == Metadata(exif=again.metadata.exif) and not again.metadata.exif
    assert again.icc_profile == SRGB
    content = (tmp_path / f"out.{suffix}").read_bytes()
    assert not any(word in content for word in (b"TestCam", b"One-Step", b"a tree", b"a title", b"a comment"))


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_iptc(tmp_path: Path, suffix: str) -> None:
    picture = Picture(torch.zeros(3, 8, 8), metadata=Metadata(iptc=IPTC))
    write_picture(tmp_path / f"a.{suffix}", picture)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        from PIL import IptcImagePlugin

        assert IptcImagePlugin.getiptcinfo(image) == {(2, 120): b"a caption"}  # pyright: ignore[reportArgumentType]
    assert read_picture(tmp_path / f"a.{suffix}").metadata.iptc == IPTC


def test_software_of_the_source_is_named_first() -> None:
    before = Metadata(exif=parse_exif(b"MM\0*\0\0\0\x08" + b"\0\1" + b"\1\x31\0\2\0\0\0\4GIM\0" + b"\0\0\0\0"))
    once = describe(before, {"software": "One-Step SR"})
    assert once.exif.main[0x0131].data == b"GIM; One-Step SR\0"
    assert once.text == {"Software": "GIM; One-Step SR"}
    assert describe(before, {}) == before


@pytest.mark.parametrize("order", [b"MM", b"II"])
def test_blocks_keep_every_byte_of_a_value(order: bytes) -> None:
    block = exif_of_a_camera(order).tobytes()
    exif = parse_exif(block)
    assert to_block(exif)[:2] == block[6:8] == order
    assert parse_exif(to_block(exif)) == exif
    other = ">" if order == b"II" else "<"
    assert exif.in_order(other).in_order(exif.order) == exif
    read = Image.Exif()
    read.load(b"Exif\0\0" + to_block(exif.in_order(other)))
    assert read.get_ifd(0x8825)[2] == (10.0, 20.0, 30.0) and read[0x010F] == "TestCam"


@pytest.mark.parametrize("damage", range(60))
def test_damaged_blocks_are_kept_as_far_as_they_go(damage: int) -> None:
    block = bytearray(exif_of_a_camera().tobytes())
    rng = np.random.default_rng(damage)
    for place in rng.integers(14, len(block), 6):
        block[place] = rng.integers(256)
    exif = parse_exif(bytes(block[: rng.integers(20, len(block) + 1)]))
    assert isinstance(exif, Exif) and isinstance(to_block(exif), bytes)


def test_what_a_jpeg_segment_cannot_hold_is_left_out(tmp_path: Path) -> None:
    metadata = Metadata(exif=parse_exif(exif_of_a_camera().tobytes()), text={"workflow": "x" * 200_000})
    write_picture(tmp_path / "a.jpg", Picture(torch.zeros(3, 8, 8), metadata=metadata))
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.getexif()[0x010F] == "TestCam" and image.getexif().get_ifd(0x8769)[0x829D] == 2.8
    write_picture(tmp_path / "a.png", Picture(torch.zeros(3, 8, 8), metadata=metadata))
    assert read_picture(tmp_path / "a.png").metadata.text == {"workflow": "x" * 200_000}


def test_what_is_left_out_is_named_and_what_fits_is_kept(tmp_path: Path) -> None:
    text = {"parameters": "a tree", "workflow": "x" * 100_000, "Comment": "a comment"}
    metadata = Metadata(text=text, xmp=b"y" * 100_000)
    write_picture(tmp_path / "a.jpg", Picture(torch.zeros(3, 8, 8), metadata=metadata))
    assert comment_of(tmp_path / "a.jpg") == "a tree"
    assert read_picture(tmp_path / "a.jpg").metadata.text == {"Comment": "a comment"}
    assert metadata_left_out(metadata, ".jpg").endswith("which is left out: XMP, the text 'workflow'.")
    lost = "which is left out: XMP, the text 'parameters', the text 'workflow'."
    assert metadata_left_out(metadata, ".gif").endswith(lost)
    assert not any(metadata_left_out(metadata, suffix) for suffix in (".png", ".webp", ".tif", ".avif"))
    assert not metadata_left_out(Metadata(text={"parameters": "a tree"}), ".jpg")


def test_a_profile_that_gif_has_no_room_for_is_named() -> None:
    picture = Picture(torch.zeros(3, 8, 8), icc_profile=SRGB)
    assert "no colour profile" in profile_left_out(picture, ".gif")
    kept = [(picture, suffix) for suffix in (".png", ".jpg", ".webp", ".tif", ".avif")]
    assert not any(profile_left_out(*pair) for pair in [*kept, (Picture(torch.zeros(3, 8, 8)), ".gif")])


def test_a_deep_profile_is_kept_either_way(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", deep(PHOTO), photometric="rgb", iccprofile=SRGB)
    picture = read_picture(tmp_path / "a.tif")
    for write in (whole, by_rows):
        for suffix in ("png", "tif"):
            write(tmp_path / f"b.{suffix}", picture)
            again = read_picture(tmp_path / f"b.{suffix}")
            assert again.icc_profile == SRGB and again.bits == 16 and torch.equal(again.pixels, picture.pixels)


def test_bigtiff_has_its_metadata_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onestep_sr.sr_models.files import tiff_write

    monkeypatch.setattr(tiff_write, "CLASSIC_TIFF_LIMIT", 100)
    write_picture(tmp_path / "b.tif", enlarged(read_picture(source(tmp_path, "jpg"))))
    assert (tmp_path / "b.tif").read_bytes()[:4] == struct.pack("<2sH", b"II", 43)
    again = read_picture(tmp_path / "b.tif").metadata
    with Image.open(tmp_path / "b.tif") as image:
        assert image.getexif().get_ifd(0x8825)[4] == (1.0, 2.0, 3.5)
    assert again.exif.gps and again.exif.photo and again.dpi == (300, 300) and again.xmp


def test_a_png_as_imagemagick_keeps_exif(tmp_path: Path) -> None:
    block = exif_of_a_camera().tobytes()
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Raw profile type exif", f"\nexif\n{len(block):8}\n{block.hex()}\n", zip=True)
    Image.fromarray(PHOTO).save(tmp_path / "a.png", pnginfo=texts)
    picture = read_picture(tmp_path / "a.png")
    assert picture.pixels.shape == (3, 64, 48) and not picture.metadata.text
    write_picture(tmp_path / "b.png", picture)
    with Image.open(tmp_path / "b.png") as image:
        assert image.getexif()[0x0112] == 1 and image.getexif()[0x010F] == "TestCam"
