"""Small videos, made by PyAV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

MILLISECONDS = Fraction(1, 1000)
VARIABLE = (0, 40, 80, 101, 160, 171, 240, 300)


def scenes(count: int, height: int = 24, width: int = 32) -> list[np.ndarray]:
    """(H, W, 3) frames with slow changes, which codecs keep."""
    down, right = np.mgrid[0:height, 0:width]
    frames = []
    for number in range(count):
        red = 60 + 100 * right / width + number
        green = 90 + 80 * down / height
        blue = 120 + 40 * np.sin((down + right) / 9 + number / 20)
        frames.append(np.stack([red, green, blue], axis=-1).round().clip(0, 255).astype(np.uint8))
    return frames


@dataclass(frozen=True)
class Clip:
    """How a video is written; a turn is (degrees counter-clockwise, flipped horizontally, flipped vertically)."""

    codec: str = "libx264"
    pixels: str = "yuv420p"
    times: Sequence[int] | None = None
    sound: str | None = None
    subtitles: bool = False
    turn: tuple[float, bool, bool] | None = None
    colors: tuple[int, int, int, int] | None = None
    aspect: Fraction = Fraction(1)
    options: tuple[tuple[str, str], ...] = (("crf", "1"),)


def write_clip(path: Path, frames: Iterable[np.ndarray | av.VideoFrame], clip: Clip = Clip()) -> Path:
    """Write frames, in 25 a second or at the clip's milliseconds."""
    frames = list(frames)
    times = clip.times or [40 * number for number in range(len(frames))]
    with av.open(str(path), "w") as file:
        stream = file.add_stream(clip.codec, rate=25, options=dict(clip.options))
        first = frames[0]
        is_made = isinstance(first, av.VideoFrame)
        stream.height, stream.width = (first.height, first.width) if is_made else first.shape[:2]
        stream.pix_fmt, stream.codec_context.time_base = clip.pixels, MILLISECONDS
        stream.codec_context.sample_aspect_ratio = clip.aspect
        if clip.turn is not None:
            stream.set_display_rotation(*clip.turn)
        if clip.colors is not None:
            context = stream.codec_context
            context.colorspace, context.color_range, context.color_primaries, context.color_trc = clip.colors
        sound = file.add_stream(clip.sound, rate=48000) if clip.sound else None
        if sound is not None:
            sound.metadata["language"] = "deu"
        codec = "mov_text" if _is_of_quicktime(file) else "subrip"
        subtitles = file.add_mux_stream(codec) if clip.subtitles else None
        file.metadata["title"] = "A title"
        file.set_chapters([{"id": 1, "start": 0, "end": 90, "time_base": MILLISECONDS, "metadata": {"title": "One"}}])
        for time, frame in zip(times, frames, strict=True):
            content = frame if is_made else av.VideoFrame.from_ndarray(frame)
            content.pts, content.time_base = time, MILLISECONDS
            file.mux(stream.encode(content))
        file.mux(stream.encode(None))
        if sound is not None:
            _write_sound(file, sound)
        if subtitles is not None:
            _write_subtitles(file, subtitles)
    return path


def _write_sound(file, stream) -> None:
    kind = stream.codec_context.format.name
    for number in range(20):
        wave = 0.3 * np.sin(np.arange(960) / (20 + number))
        values = wave.astype(np.float32) if "flt" in kind else (32767 * wave).astype(np.int16)
        channels = np.repeat(values[None], 2, axis=0)
        frame = av.AudioFrame.from_ndarray(
            channels if kind.endswith("p") else channels.T.reshape(1, -1).copy(), format=kind, layout="stereo"
        )
        frame.sample_rate, frame.pts, frame.time_base = 48000, 960 * number, Fraction(1, 48000)
        file.mux(stream.encode(frame))
    file.mux(stream.encode(None))


def _is_of_quicktime(file) -> bool:
    return file.format.name in ("mp4", "mov")


def _write_subtitles(file, stream) -> None:
    for number, text in enumerate((b"Hello", b"World")):
        packet = av.Packet(len(text).to_bytes(2, "big") + text if _is_of_quicktime(file) else text)
        packet.stream, packet.time_base = stream, MILLISECONDS
        packet.pts = packet.dts = 100 * number
        packet.duration = 80
        file.mux(packet)


@dataclass(frozen=True)
class Content:
    """What a video holds: times in seconds, frames (H, W, 3), and what else its streams say."""

    times: list[Fraction]
    frames: list[np.ndarray]
    kinds: list[tuple[str, str]]
    first: av.VideoFrame
    texts: dict[str, str]
    chapters: list[str]
    aspect: Fraction
    languages: list[str | None]


def read_clip(path: Path) -> Content:
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        contents = list(file.decode(stream))
        return Content(
            [content.pts * content.time_base for content in contents],
            [content.to_ndarray(format="rgb24") for content in contents],
            [(each.type, each.codec_context.name) for each in file.streams if each.codec_context],
            contents[0],
            {key.lower(): text for key, text in file.metadata.items()},
            [chapter["metadata"].get("title", "") for chapter in file.chapters()],
            stream.sample_aspect_ratio,
            [each.language for each in file.streams.audio],
        )


def packets(path: Path, kind: str) -> list[tuple[bytes, Fraction]]:
    """Contents and times of the packets of the first stream of a kind."""
    with av.open(str(path)) as file:
        stream = next(each for each in file.streams if each.type == kind)
        return [(bytes(each), each.pts * each.time_base) for each in file.demux(stream) if each.size]
