"""Animations: whole frames with their durations, in and out, against other decoders."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.files.animation import Film
from onestep_sr.sr_models.files.picture import Picture, PictureSequence
from onestep_sr.sr_models.files.read import read_picture, read_pictures
from onestep_sr.sr_models.files.write import write_pictures
from PIL import Image
from sample_pictures import ALPHA, PHOTO, alpha_of, chunk, distance, picture_of

FRAMES = [PHOTO, PHOTO[::-1], PHOTO[:, ::-1], PHOTO[:, ::-1]]  # the last is shown twice: two frames all the same
DURATIONS = [100, 40, 250, 70]
ROUND = np.hypot(*np.ogrid[-24:24, -32:32]) < 20


def sequence(frames: list[Picture], plays: int = 0) -> PictureSequence:
    return PictureSequence("animation", len(frames), lambda: iter(frames), plays)


def frames_of(values: list[np.ndarray]) -> list[Picture]:
    return [replace(picture_of(v), duration=d) for v, d in zip(values, DURATIONS, strict=True)]


def write(path: Path, frames: list[Picture], plays: int = 0) -> None:
    write_pictures(path, sequence(frames), "animation", Film(len(frames), plays, quality=100))


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "avif"])
def test_frames_that_pillow_wrote(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    images = [Image.fromarray(np.ascontiguousarray(values)) for values in FRAMES[:3]]
    lossless = {"lossless": True} if suffix == "webp" else {"quality": 100}
    images[0].save(path, save_all=True, append_images=images[1:], duration=DURATIONS[:3], loop=0, **lossless)
    animation = read_pictures(path)
    assert (animation.kind, len(animation), animation.plays) == ("animation", 3, 0)
    read = list(animation)
    assert [picture.duration for picture in read] == DURATIONS[:3]
    for picture, values in zip(read, FRAMES, strict=False):
        error = np.abs(picture.pixels.numpy().transpose(1, 2, 0) * 255 - values).mean()
        assert error < {"png": 0.01, "webp": 0.01, "gif": 8, "avif": 4}[suffix]
    assert torch.equal(read_picture(path).pixels, read[0].pixels)
    assert torch.equal(list(animation)[2].pixels, read[2].pixels)  # once more from the beginning


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "avif"])
@pytest.mark.parametrize("plays", [0, 1, 3])
def test_every_frame_and_duration_is_written(tmp_path: Path, suffix: str, plays: int) -> None:
    path = tmp_path / f"a.{suffix}"
    write(path, frames_of(FRAMES), plays)
    animation = read_pictures(path)
    assert len(animation) == 4
    assert animation.plays == (0 if suffix == "avif" else plays)
    assert [picture.duration for picture in animation] == DURATIONS
    for picture, values in zip(animation, FRAMES, strict=True):
        error = np.abs(picture.pixels.numpy().transpose(1, 2, 0) * 255 - values).mean()
        assert error < {"png": 0.01, "webp": 4, "gif": 8, "avif": 4}[suffix]


def test_other_decoders_read_the_same(tmp_path: Path) -> None:
    for suffix in ("png", "gif", "webp"):
        write(tmp_path / f"a.{suffix}", frames_of(FRAMES))
    apng = imagecodecs.apng_decode((tmp_path / "a.png").read_bytes())
    assert np.array_equal(apng[..., :3], np.stack(FRAMES))
    gif = imagecodecs.gif_decode((tmp_path / "a.gif").read_bytes())
    assert gif.shape[0] == 4 and np.abs(gif[..., :3].astype(int) - np.stack(FRAMES)).mean() < 8
    webp = (tmp_path / "a.webp").read_bytes()
    third = imagecodecs.webp_decode(webp, index=2)
    assert np.abs(third[..., :3].astype(int) - FRAMES[2]).mean() < 4


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_transparency_does_not_show_the_frame_before(tmp_path: Path, suffix: str) -> None:
    masks = [ROUND, ~ROUND, ROUND, ~ROUND]
    values = [np.dstack([frame, mask * np.uint8(255)]) for frame, mask in zip(FRAMES, masks, strict=True)]
    write(tmp_path / f"a.{suffix}", frames_of(values))
    for picture, mask in zip(read_pictures(tmp_path / f"a.{suffix}"), masks, strict=True):
        assert np.array_equal(alpha_of(picture) > 127, mask)


@pytest.mark.parametrize("disposal", [1, 2, 3])
def test_gif_frames_are_composited(tmp_path: Path, disposal: int) -> None:
    """Two frames, the second a smaller rectangle, by hand; the third would show what the disposal of it leaves."""
    palette = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0])

    def frame(left: int, top: int, side: int, color: int, leaves: int) -> bytes:
        control = b"!\xf9\x04" + struct.pack("<BHBB", leaves << 2, 5, 0, 0)
        place = b"," + struct.pack("<HHHHB", left, top, side, side, 0)
        # LZW of 2-bit colours with a clear code before each pixel: codes of 3 bits, 4 clears, 5 ends.
        codes = "".join(f"{code:03b}"[::-1] for _ in range(side * side) for code in (4, color)) + f"{5:03b}"[::-1]
        data = bytes(int(codes[i : i + 8][::-1], 2) for i in range(0, len(codes), 8))
        blocks = b"".join(bytes([len(part)]) + part for part in (data[i : i + 255] for i in range(0, len(data), 255)))
        return control + place + b"\2" + blocks + b"\0"

    head = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x81, 3, 0) + palette
    parts = [frame(0, 0, 8, 0, 1), frame(2, 2, 4, 1, disposal), frame(0, 0, 2, 2, 1)]
    (tmp_path / "a.gif").write_bytes(head + b"".join(parts) + b";")
    first, second, third = read_pictures(tmp_path / "a.gif")
    red, green, blue = (np.eye(3)[i] for i in range(3))

    def color(picture: Picture, row: int, column: int) -> list[float]:
        return picture.pixels[:, row, column].tolist()

    assert color(first, 4, 4) == red.tolist() and color(second, 4, 4) == green.tolist()
    assert color(second, 0, 0) == red.tolist() and color(third, 0, 0) == blue.tolist()
    left = {1: green, 2: 0 * red, 3: red}[disposal]  # as it is, the background's colour, as it was before
    assert color(third, 4, 4) == left.tolist()


def apng(parts: list[tuple[bytes, bytes]], default_is_a_frame: bool) -> bytes:
    """Frames of RGBA by hand: each a control chunk without its sequence number, and its pixels."""
    header = (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 6, 0, 0, 0))
    chunks, number = [header, (b"acTL", struct.pack(">II", len(parts), 2))], 0
    if not default_is_a_frame:
        chunks.append((b"IDAT", zlib.compress((b"\0" + bytes([9, 9, 9, 255] * 8)) * 8)))
    for index, (control, pixels) in enumerate(parts):
        chunks.append((b"fcTL", struct.pack(">I", number) + control))
        number += 1
        if index == 0 and default_is_a_frame:
            chunks.append((b"IDAT", zlib.compress(pixels)))
        else:
            chunks.append((b"fdAT", struct.pack(">I", number) + zlib.compress(pixels)))
            number += 1
    chunks.append((b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in chunks)


@pytest.mark.parametrize("default_is_a_frame", [True, False])
@pytest.mark.parametrize("blend", [0, 1])
def test_apng_frames_are_blended(tmp_path: Path, blend: int, default_is_a_frame: bool) -> None:
    whole = struct.pack(">IIIIHHBB", 8, 8, 0, 0, 1, 10, 0, 0)
    part = struct.pack(">IIIIHHBB", 4, 4, 2, 2, 50, 1000, 0, blend)
    red = (b"\0" + bytes([255, 0, 0, 255] * 8)) * 8
    half_blue = (b"\0" + bytes([0, 0, 255, 128] * 4)) * 4
    (tmp_path / "a.png").write_bytes(apng([(whole, red), (part, half_blue)], default_is_a_frame))
    animation = read_pictures(tmp_path / "a.png")
    assert (len(animation), animation.plays) == (2, 2)
    first, second = animation
    assert (first.duration, second.duration) == (100, 50)
    assert first.pixels[:, 4, 4].tolist() == [1, 0, 0] and second.pixels[:, 0, 0].tolist() == [1, 0, 0]
    if blend:
        assert np.allclose(second.pixels[:, 4, 4].numpy() * 255, [127, 0, 128], atol=1.5)
    else:
        assert second.pixels[:, 4, 4].tolist() == [0, 0, 1] and round(alpha_of(second)[4, 4]) == 128


@pytest.mark.parametrize(
    ("frames", "default_is_a_frame", "notices"),
    [
        (2, True, ()),
        (2, False, ("The file's still picture, for programs that do not show animations, is not used.",)),
        (1, False, ("The file also holds an animation of one frame, which is not used.",)),
    ],
)
def test_what_is_not_used_of_an_apng_is_said(tmp_path, frames, default_is_a_frame, notices) -> None:
    whole = struct.pack(">IIIIHHBB", 8, 8, 0, 0, 1, 10, 0, 0)
    red = (b"\0" + bytes([255, 0, 0, 255] * 8)) * 8
    (tmp_path / "a.png").write_bytes(apng([(whole, red)] * frames, default_is_a_frame))
    first = read_picture(tmp_path / "a.png")
    assert first.notices == notices
    assert (first.pixels[:, 0, 0] * 255).tolist() == ([9, 9, 9] if frames == 1 else [255, 0, 0])


def test_alpha_of_webp_animations(tmp_path: Path) -> None:
    image = Image.fromarray(np.dstack([PHOTO, ALPHA]))
    image.save(tmp_path / "a.webp", save_all=True, append_images=[image.rotate(180)], lossless=True, exact=True)
    first, second = read_pictures(tmp_path / "a.webp")
    assert distance(first, PHOTO, ALPHA > 0) == 0 and np.abs(alpha_of(first) - ALPHA).max() < 0.01
    assert np.abs(alpha_of(second) - ALPHA[:, ::-1]).max() < 0.01


def test_frames_become_pages_but_no_jpeg(tmp_path: Path) -> None:
    frames = frames_of(FRAMES)
    write(tmp_path / "a.tif", frames)
    assert len(read_pictures(tmp_path / "a.tif")) == 4
    with pytest.raises(UserError, match="does not support an animation of 4 frames: choose gif, webp or png"):
        write(tmp_path / "a.jpg", frames)


@pytest.mark.parametrize("suffix", ["png", "webp", "gif", "tif"])
def test_one_frame_at_a_time_and_no_half_file(tmp_path: Path, suffix: str) -> None:
    alive = []

    def frames() -> Iterator[Picture]:
        for frame in frames_of(FRAMES):
            alive.append(frame)
            yield frame
        raise UserError("frame 5 is broken.")

    (tmp_path / f"a.{suffix}").write_bytes(b"old")
    with pytest.raises(UserError, match="frame 5"):
        write_pictures(tmp_path / f"a.{suffix}", frames(), "animation", Film(5))
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{suffix}"]
    assert (tmp_path / f"a.{suffix}").read_bytes() == b"old"


def test_stills_have_one_frame(tmp_path: Path) -> None:
    for suffix in ("png", "gif", "webp", "avif", "tif"):
        Image.fromarray(PHOTO).save(tmp_path / f"a.{suffix}")
        still = read_pictures(tmp_path / f"a.{suffix}")
        assert (still.kind, len(still)) == ("single", 1)
        assert [picture.duration for picture in still] == [None]


def test_what_pillow_says_of_the_written_files(tmp_path: Path) -> None:
    write(tmp_path / "a.gif", frames_of(FRAMES), plays=2)
    with Image.open(io.BytesIO((tmp_path / "a.gif").read_bytes())) as image:
        assert image.n_frames == 4 and image.info["loop"] == 1  # pyright: ignore[reportAttributeAccessIssue]
