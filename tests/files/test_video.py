"""Frames of videos: colours by H.273's equations, and the eight ways to turn a frame."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.files.video import read_frames, read_video
from sample_videos import Clip, scenes, write_clip

SHARES = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}  # of red and blue in luma
COLORS = [(200, 40, 90), (20, 180, 60), (128, 128, 128), (250, 250, 250), (5, 10, 120)]


def planes(color: tuple[int, int, int], matrix: int, full: bool, bits: int) -> list[int]:
    """Luma and both chroma values of a colour (ITU-T H.273, equations 8-9 and others)."""
    red, green, blue = (value / 255 for value in color)
    of_red, of_blue = SHARES[matrix]
    luma = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    chroma = (blue - luma) / (2 - 2 * of_blue), (red - luma) / (2 - 2 * of_red)
    top, unit = 2**bits - 1, 2 ** (bits - 8)
    if full:
        return [round(top * luma), *(round(top * value + 128 * unit) for value in chroma)]
    return [round((219 * luma + 16) * unit), *(round((224 * value + 128) * unit) for value in chroma)]


def flat(values: list[int], pixels: str) -> av.VideoFrame:
    """A frame of 32 x 24 px of one colour."""
    frame = av.VideoFrame(32, 24, pixels)
    for plane, value in zip(frame.planes, values, strict=True):
        kind = np.dtype(np.uint16 if "10" in pixels else np.uint8)
        plane.update(np.full(plane.buffer_size // kind.itemsize, value, kind))
    return frame


@pytest.mark.parametrize("matrix", SHARES, ids=str)
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("bits", [8, 10])
def test_colours_follow_the_tags(tmp_path, matrix, full, bits) -> None:
    pixels = "yuv420p" if bits == 8 else "yuv420p10le"
    frames = [flat(planes(color, matrix, full, bits), pixels) for color in COLORS]
    clip = Clip("ffv1", pixels, colors=(matrix, 2 if full else 1, 1, 1), options=())
    video = read_video(write_clip(tmp_path / "a.mkv", frames, clip))
    assert (video.colors.matrix, video.colors.range) == (matrix, 2 if full else 1)
    for frame, color in zip(read_frames(video), COLORS, strict=True):
        picture = frame.picture()
        assert picture.bits == (8 if bits == 8 else 16)
        assert np.abs(picture.pixels.numpy() * 255 - np.reshape(color, (3, 1, 1))).max() < 2


@pytest.mark.parametrize(
    ("size", "matrix"),
    [((24, 32), 6), ((576, 32), 5), ((720, 32), 1), ((24, 1280), 1)],
    ids=["480", "576", "720", "wide"],
)
def test_colours_without_tags_are_what_players_assume_for_the_size(tmp_path, size, matrix) -> None:
    video = read_video(write_clip(tmp_path / "a.mkv", scenes(1, *size)))
    assert (video.colors.matrix, video.colors.primaries, video.colors.range) == (matrix, matrix, 1)


@pytest.mark.parametrize("turn", [(a, h, False) for a in (0, 90, 180, 270) for h in (False, True)], ids=str)
def test_frames_are_upright(tmp_path, turn) -> None:
    """PyAV documents the turn: counter-clockwise, then mirrored."""
    [frame] = scenes(1)
    clip = Clip("libx264rgb", "rgb24", turn=turn, options=(("qp", "0"),))
    write_clip(tmp_path / "a.mp4", [frame], clip)
    expected = np.rot90(frame, turn[0] // 90)
    if turn[1]:
        expected = expected[:, ::-1]
    values = read_video(tmp_path / "a.mp4").first.pixels.numpy() * 255
    assert np.abs(values.transpose(1, 2, 0) - expected).max() < 1


def test_each_frame_is_later_than_the_one_before(tmp_path) -> None:
    video = read_video(write_clip(tmp_path / "a.mkv", scenes(4), Clip(times=(0, 40, 41, 160))))
    assert [frame.time for frame in read_frames(video)] == [0, 40, 41, 160]
    assert video.count in (0, 4, 5) and video.first.pixels.shape == (3, 24, 32)


def broken(path: Path) -> Path:
    path.write_bytes(b"\0\0\0\x18ftypmp42" + bytes(4000))
    return path


def only_sound(path: Path) -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        frame.sample_rate = 48000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def empty(path: Path) -> Path:
    path.touch()
    return path


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (broken, "is broken, or of a kind that is not supported (Invalid data found when processing input): "),
        (only_sound, "has no frames: choose another file."),
        (empty, "is broken, or of a kind that is not supported (Invalid data found when processing input): "),
        (lambda path: path, "cannot be read (No such file or directory): check the file and its permissions."),
    ],
    ids=["broken", "only sound", "empty", "missing"],
)
def test_what_is_no_video_ends_in_a_sentence(tmp_path, make, sentence) -> None:
    path = make(tmp_path / "a.mp4")
    with pytest.raises(UserError) as caught:
        read_video(path)
    assert str(caught.value).startswith(f"{path} {sentence}")
