"""Cut and damaged files: each reads, or is refused in one sentence, quickly."""

from __future__ import annotations

import random
import time
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.files.listing import is_hidden, is_picture
from onestep_sr.sr_models.files.read import read_picture, read_pictures
from PIL import Image
from sample_pictures import GREY, PHOTO, deep

SECONDS = 2


def make_files(folder: Path) -> list[Path]:
    image = Image.fromarray(PHOTO)
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "TestCam", 6
    for suffix in ("jpg", "png", "webp", "tif", "avif", "gif", "bmp", "qoi", "jp2", "tga"):
        image.save(folder / f"a.{suffix}", exif=exif.tobytes())
    for suffix in ("png", "webp", "gif"):
        image.save(folder / f"moving.{suffix}", save_all=True, append_images=[image.rotate(180)] * 2, duration=50)
    (folder / "deep.png").write_bytes(imagecodecs.png_encode(deep(PHOTO)))
    tifffile.imwrite(folder / "deep.tif", deep(PHOTO), photometric="rgb", rowsperstrip=8)
    tifffile.imwrite(
        folder / "float.tif", PHOTO / np.float32(255), photometric="rgb", compression="zlib", predictor=True
    )
    tifffile.imwrite(folder / "pages.tif", np.stack([GREY] * 3), photometric="miniswhite", bigtiff=True)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.quantize(16).save(folder / "palette.png")
    return sorted(folder.iterdir())


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Cut anywhere, or with bytes changed: in the header more often than elsewhere."""
    if rng.random() < 0.35:
        return content[: rng.randrange(len(content))]
    changed = bytearray(content)
    reach = 400 if rng.random() < 0.6 else len(changed)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        changed[rng.randrange(min(reach, len(changed)))] = rng.choice([0, 255, rng.randrange(256)])
    return bytes(changed)


@pytest.mark.parametrize("seed", range(5))
def test_damage_never_ends_in_another_error(tmp_path: Path, seed: int) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    files, rng = make_files(folder), random.Random(seed)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(100):
        source = rng.choice(files)
        path = tmp_path / source.name
        path.write_bytes(damaged(source.read_bytes(), rng))
        begin = time.process_time()
        try:
            for picture in read_pictures(path):
                assert picture.pixels.min() >= 0 and picture.pixels.max() <= 1
            outcomes["read"] += 1
        except UserError as error:
            message = str(error)
            assert message.startswith(str(path)) and message.endswith(".") and "\n" not in message
            outcomes["refused"] += 1
        assert time.process_time() - begin < SECONDS
    assert min(outcomes.values()) > 5


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "float.tif", "pages.tif", "a.jpg", "a.webp", "a.avif"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_cut_files_are_broken_whatever_their_depth(tmp_path: Path, name: str, share: float) -> None:
    make_files(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=f"{name} is (broken|not a supported picture)"):
        list(read_pictures(tmp_path / name))


def test_a_header_that_promises_too_much_is_not_believed(tmp_path: Path) -> None:
    make_files(tmp_path)
    png = bytearray((tmp_path / "deep.png").read_bytes())
    png[16:24] = (40_000).to_bytes(4, "big") * 2
    (tmp_path / "deep.png").write_bytes(png)
    with pytest.raises(UserError, match="a file of this size cannot hold 40000 x 40000 px"):
        read_picture(tmp_path / "deep.png")
    with tifffile.TiffFile(tmp_path / "deep.tif", mode="r+") as file:
        tags = file.pages[0].tags  # pyright: ignore[reportAttributeAccessIssue]
        tags["ImageWidth"].overwrite(40_000)
    with pytest.raises(UserError, match="cannot hold 40000 x 48 px"):
        read_picture(tmp_path / "deep.tif")


def test_what_counts_as_a_picture(tmp_path: Path) -> None:
    files = make_files(tmp_path)
    (tmp_path / "noext").write_bytes((tmp_path / "a.jpg").read_bytes())
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7")
    (tmp_path / "empty.png").touch()
    assert all(is_picture(path) for path in [*files, tmp_path / "noext"])
    assert not any(is_picture(tmp_path / name) for name in ("a.txt", "a.pdf", "empty.png", "none.png", "."))
    hidden = ("._IMG_1.JPG", ".thumbs/a.jpg", "__MACOSX/a.jpg")
    assert all(is_hidden(Path(name)) for name in hidden) and not is_hidden(Path("a/b.jpg"))
