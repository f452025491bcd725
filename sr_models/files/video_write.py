"""Writing videos through PyAV: parts of frames, and whole files of them with the source's sound and subtitles."""

from __future__ import annotations

import heapq
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import torch.nn.functional as F
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from ..errors import UserError
from .formats import VIDEO_FORMATS
from .picture import Picture, as_integers
from .video import EXACT, MATRICES, Colors, Video, film_of

LONGEST_H264 = 4096  # px; decoders in hardware end there
REORDERED = 2  # frames that an encoder may hold back, at most
KINDS = {"audio": "sound", "subtitle": "subtitles", "video": "second picture", "attachment": "attachment"}
OF_THE_FILE = ("major_brand", "minor_version", "compatible_brands", "encoder")


@dataclass(frozen=True)
class Encoding:
    """How frames are encoded: their size in px, both sides even, and bits a channel (8 or 10). quality: 1 to 100."""

    codec: str
    height: int
    width: int
    bits: int
    rate: Fraction
    aspect: Fraction
    colors: Colors
    quality: int

    @property
    def crf(self) -> int:
        """The encoder's quality: 16 for 95, 51 (the worst) for 37 and less; VP9's scale ends at 63."""
        crf = min(51.0, 13 + 0.6 * (100 - self.quality))
        return round(crf * 63 / 51 if self.codec == "libvpx-vp9" else crf)

    @property
    def pixels(self) -> str:
        return "yuv420p10le" if self.bits > 8 else "yuv420p"


def encoding_for(target: Path, video: Video, height: int, width: int, quality: int) -> Encoding:
    """H.264 for 8 bits and up to 4096 px a side, else HEVC; VP9 in WebM. Sides become even, as 4:2:0 needs.

    Raises UserError for an extension that is not a video's, and a size that cannot be encoded.
    """
    suffix = target.suffix.lower()
    if suffix not in VIDEO_FORMATS:
        known = ", ".join(VIDEO_FORMATS)
        raise UserError(f"{target} has an extension that is not supported for videos: choose one of {known}.")
    height, width, bits = height + height % 2, width + width % 2, 10 if video.first.bits > 8 else 8
    is_h264 = bits == 8 and max(height, width) <= LONGEST_H264
    codec = "libvpx-vp9" if suffix == ".webm" else "libx264" if is_h264 else "libx265"
    encoding = Encoding(codec, height, width, bits, video.rate, video.aspect, video.colors, quality)
    try:
        with av.open(io.BytesIO(), "w", format="nut") as file:
            _add_encoder(file, encoding)
    except (av.FFmpegError, ValueError) as error:
        raise UserError(
            f"{target} cannot be encoded with {width} x {height} px and {bits} bits: choose mkv, or a smaller size."
        ) from error
    return encoding


def encode(path: Path, pictures: Iterable[Picture], encoding: Encoding) -> None:
    """Write a part of a video that can be decoded by itself; its frames have numbers in place of times."""
    with av.open(str(path), "w", format="nut") as file:
        stream = _add_encoder(file, encoding)
        for number, picture in enumerate(pictures):
            frame = _frame(picture, encoding)
            frame.pts, frame.time_base = number, 1 / encoding.rate
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with path.open("r+b") as written:
        os.fsync(written.fileno())


def _add_encoder(file: OutputContainer, encoding: Encoding) -> VideoStream:
    options = {"crf": str(encoding.crf)}
    if encoding.codec == "libvpx-vp9":
        options |= {"b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}
    if encoding.codec == "libx265":
        options["x265-params"] = "log-level=none"
    stream = cast(VideoStream, file.add_stream(encoding.codec, rate=encoding.rate, options=options))
    stream.height, stream.width, stream.pix_fmt = encoding.height, encoding.width, encoding.pixels
    context = stream.codec_context
    context.time_base, context.max_b_frames = 1 / encoding.rate, REORDERED
    _describe(context, encoding)
    context.open()
    return stream


def _describe(context: VideoCodecContext, encoding: Encoding) -> None:
    colors = encoding.colors
    context.colorspace, context.color_range = colors.matrix, colors.range
    context.color_primaries, context.color_trc = colors.primaries, colors.curve
    context.sample_aspect_ratio = encoding.aspect


def _frame(picture: Picture, encoding: Encoding) -> av.VideoFrame:
    """The picture with its last row or column repeated where the frame has one more."""
    height, width = picture.pixels.shape[-2:]
    margin = (0, encoding.width - width, 0, encoding.height - height)
    pixels = F.pad(picture.pixels[None], margin, mode="replicate")[0]
    kind, rgb = (np.uint16, "rgb48le") if encoding.bits > 8 else (np.uint8, "rgb24")
    values = as_integers(replace(picture, pixels=pixels, alpha=None), False, kind)
    frame = av.VideoFrame.from_ndarray(values, format=rgb).reformat(
        format=encoding.pixels,
        dst_colorspace=MATRICES[encoding.colors.matrix],
        dst_color_range=encoding.colors.range,
        interpolation=EXACT,
    )
    frame.colorspace = encoding.colors.matrix
    return frame


# The whole file


def left_out(video: Video, target: Path) -> str:
    """A sentence about streams of the video that the target's format does not support; empty if there are none. Raises
    UserError for sound."""
    with av.open(str(video.path), metadata_errors="replace") as source:
        kept = [film_of(source), *_copied(source, target.suffix)]
        others = [stream for stream in source.streams if stream not in kept and not _has_chapters(stream)]
        for stream in others:
            if stream.type == "audio":
                raise UserError(
                    f"{target} does not support the sound of {video.path.name} ({_codec(stream)}): choose mkv or mov."
                )
        names = ", ".join(f"{KINDS.get(stream.type, 'data')} ({_codec(stream)})" for stream in others)
        return f"Not in the result, as its format does not support it: {names}." if names else ""


def _has_chapters(stream: Stream) -> bool:
    """Whether a stream holds the names of chapters, as in MP4; chapters are copied as such."""
    return stream.type == "data" and bool(stream.container.chapters())


def _codec(stream: Stream) -> str:
    return stream.codec_context.name if stream.codec_context else stream.metadata.get("handler_name", "unknown")


def _copied(source: InputContainer, suffix: str) -> list[Stream]:
    return [
        stream
        for stream in source.streams
        if stream.type in ("audio", "subtitle", "attachment") and _fits(stream, suffix)
    ]


def _fits(stream: Stream, suffix: str) -> bool:
    with av.open(io.BytesIO(), "w", format=VIDEO_FORMATS[suffix.lower()]) as file:
        try:
            file.add_stream_from_template(stream)
        except ValueError:
            return False
    return True


@dataclass(frozen=True)
class Film:
    """Encoded frames: the files of `encode` in their order, the time of each frame in the video's `time_base` and then
    the end of the last, and texts about the video."""

    parts: Sequence[Path]
    times: Sequence[int]
    encoding: Encoding
    texts: dict[str, str]


def write_video(path: Path, video: Video, film: Film) -> None:
    """Write a video of these frames, with the source's sound, subtitles and chapters as they are."""
    with (
        av.open(str(path), "w", format=VIDEO_FORMATS[path.suffix.lower()]) as file,
        av.open(str(video.path), metadata_errors="replace") as source,
        av.open(str(film.parts[0])) as part,
    ):
        frames = file.add_stream_from_template(part.streams.video[0], opaque=True)
        frames.time_base = video.time_base
        _describe(frames.codec_context, film.encoding)
        if film.encoding.codec == "libx265" and path.suffix.lower() != ".mkv":
            frames.codec_context.codec_tag = "hvc1"  # the only one that Apple's players take
        copies = {stream.index: file.add_stream_from_template(stream) for stream in _copied(source, path.suffix)}
        for index, copy in copies.items():
            copy.metadata.update(source.streams[index].metadata)
            copy.disposition = source.streams[index].disposition
        file.metadata.update(film.texts)
        file.set_chapters(source.chapters())
        for packet in heapq.merge(_frames(film, video, frames), _copies(source, copies), key=_when):
            file.mux_one(packet)


def texts_of(video: Video) -> dict[str, str]:
    """Title, place, date and the like."""
    with av.open(str(video.path), metadata_errors="replace") as source:
        return {key: text for key, text in source.metadata.items() if key.lower() not in OF_THE_FILE}


def _when(packet: Packet) -> Fraction:
    return (packet.dts or 0) * packet.time_base


def _copies(source: InputContainer, copies: dict[int, Stream]) -> Iterator[Packet]:
    if not copies:
        return
    for packet in source.demux([source.streams[index] for index in copies]):
        if packet.dts is None:
            packet.dts = packet.pts
        if packet.dts is not None:
            packet.stream = copies[packet.stream_index]
            yield packet


def _frames(film: Film, video: Video, stream: VideoStream) -> Iterator[Packet]:
    """The parts' packets with the video's times. A packet is decoded when the frame two places before it in the order
    of showing is shown, which is early enough for all, and the same order across parts."""
    times, step = film.times, max(1, round(1 / (video.rate * video.time_base)))
    begun = done = 0
    for path in film.parts:
        with av.open(str(path)) as part:
            zero = None
            for packet in part.demux(video=0):
                if packet.pts is None:
                    continue
                zero = packet.pts if zero is None else zero
                number = begun + round((packet.pts - zero) * packet.time_base * film.encoding.rate)
                packet.stream, packet.time_base = stream, video.time_base
                packet.pts, packet.duration = times[number], times[number + 1] - times[number]
                early = done - REORDERED
                packet.dts = times[early] if early >= 0 else times[0] + early * step
                done += 1
                yield packet
        begun = done
