"""Reading videos through PyAV, one frame at a time.

Sources: ITU-T H.273 for the numbers of colours, FFmpeg's documentation of display matrices.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from .picture import Picture, from_values, turned
from .profiles import UnreadableError
from .read import COPY_AGAIN, decoded, said_of

# The usual conversion in FFmpeg is faster, but repeats colours in blocks and rounds down.
EXACT = 0x4 | 0x2000 | 0x4000 | 0x40000  # swscale: bicubic, full chroma out and in, accurate rounding
if int(av.__version__.split(".")[0]) < 17:
    raise ImportError(f"PyAV {av.__version__} is too old for this module, which needs 17 or newer.")
NO_FRAMES = "has no frames: choose another file."
RGB, BT709, UNKNOWN, PAL, NTSC = 0, 1, 2, 5, 6  # numbers of H.273 for matrices and primaries
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}  # those of luma and chroma, and the numbers that swscale has for them
LIMITED, FULL = 1, 2
CLOCK = re.compile(r"(\d{1,9}):(\d\d):(\d\d(?:\.\d{1,9})?)", re.ASCII)
DYNAMIC = ("MASTERING_DISPLAY_METADATA", "DYNAMIC_HDR_PLUS", "DOVI_METADATA")  # PyAV's names of side data
# EXIF's orientation for the signs of a display matrix (a, b, c, d), with which x' = ax + cy and y' = bx + dy.
ORIENTATIONS = {
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}


@dataclass(frozen=True)
class Colors:
    """H.273's numbers of a video's colours. range: 1 where black is 16 of 255, 2 where it is 0."""

    matrix: int
    range: int
    primaries: int
    curve: int


@dataclass(frozen=True)
class Video:
    """A video file.

    first: its first frame. count: frames as the file says, or about as many; 0 if unknown. rate: frames a second, on
    average. time_base: the unit of `Frame.time` in seconds. length: when the last frame ends, in seconds, as the file
    says; 0 if unknown. aspect: width over height of an upright pixel.
    """

    path: Path
    first: Picture
    count: int
    rate: Fraction
    time_base: Fraction
    length: Fraction
    colors: Colors
    aspect: Fraction
    notices: tuple[str, ...]


@dataclass(frozen=True)
class Frame:
    """A frame that is not converted yet. time: when it is shown, and duration: how long, in its video's `time_base`."""

    time: int
    duration: int
    content: av.VideoFrame
    colors: Colors

    def picture(self) -> Picture:
        """The frame upright: 8 bits, or 16 where it has more than 8. Its transparency is left out."""
        frame = self.content
        frame.colorspace, frame.color_range = self.colors.matrix, self.colors.range
        kind = "rgb48le" if _depth(frame) > 8 else "rgb24"
        values = frame.reformat(format=kind, interpolation=EXACT).to_ndarray()
        return turned(from_values(values), _orientation(frame))


def read_video(path: Path) -> Video:
    """Open a video. Raises UserError for a file that is missing, broken or has no frames."""
    with said_of(path), _opened(path) as (container, stream):
        content = next(container.decode(stream), None)
        if content is None:
            raise UnreadableError(NO_FRAMES)
        colors, rate = _colors(content), stream.average_rate or stream.guessed_rate or Fraction(25)
        first = Frame(0, 0, content, colors)
        count = stream.frames or round(rate * (container.duration or 0) / av.time_base)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        is_on_its_side = _orientation(content) > 4
        return Video(
            path,
            first.picture(),
            count,
            rate.limit_denominator(1001) or rate,
            stream.time_base or 1 / rate,
            _length(container, stream),
            colors,
            1 / aspect if is_on_its_side else aspect,
            tuple(_notices(content)),
        )


def read_frames(video: Video) -> Iterator[Frame]:
    """All frames in their order, each later than the one before. Raises UserError where the file is broken, or changes
    its size."""
    return decoded(video.path, partial(_frames, video))


def _frames(video: Video, path: Path) -> Iterator[Frame]:
    with _opened(path) as (container, stream):
        step = max(1, round(1 / (video.rate * video.time_base)))
        last, size = None, None
        for content in container.decode(stream):
            size = size or (content.width, content.height)
            if (content.width, content.height) != size:
                raise UnreadableError(
                    f"changes its size from {size[0]} x {size[1]} to {content.width} x {content.height} px: cut it "
                    "into parts."
                )
            if last is None:
                last = content.pts or 0
            else:
                last = last + step if content.pts is None or content.pts <= last else content.pts
            yield Frame(last, content.duration or step, content, video.colors)


def film_of(container: InputContainer) -> VideoStream | None:
    """The stream of frames, which is not a cover."""
    streams = (stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic)
    return next(streams, None)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = film_of(container)
            if stream is None:
                raise UnreadableError(NO_FRAMES)
            stream.thread_type = "AUTO"
            yield container, stream
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise UnreadableError(
            f"is broken, or of a kind that is not supported ({error.strerror}): {COPY_AGAIN}"
        ) from error


def _length(container: InputContainer, stream: VideoStream) -> Fraction:
    """What the headers of MP4, QuickTime and Matroska say; of other files FFmpeg only knows what it finds in them."""
    if "mp4" in container.format.name and stream.duration and stream.time_base:
        return stream.duration * stream.time_base
    text = next((text for key, text in stream.metadata.items() if key.startswith("DURATION")), "")
    found = CLOCK.match(text)
    hours, minutes, seconds = map(Fraction, found.groups()) if found else (0, 0, 0)
    return Fraction(3600 * hours + 60 * minutes + seconds)


def _depth(frame: av.VideoFrame) -> int:
    return max(component.bits for component in frame.format.components)


def _colors(frame: av.VideoFrame) -> Colors:
    """The frame's own. What it leaves open is what players assume for its size, as they assume something else for
    the result's."""
    is_small = frame.width < 1280 and frame.height <= 576
    usual = BT709 if not is_small else PAL if frame.height == 576 else NTSC
    if frame.format.is_rgb:
        return Colors(usual, LIMITED, frame.color_primaries, frame.color_trc)
    matrix, primaries = frame.colorspace, frame.color_primaries
    if matrix in (RGB, UNKNOWN):
        matrix, primaries = usual, usual if primaries == UNKNOWN else primaries
    if matrix not in MATRICES:
        raise UnreadableError(f"has colours of a kind that is not supported (matrix {matrix}): convert it first.")
    full = frame.color_range == FULL or frame.format.name.startswith("yuvj")
    return Colors(matrix, FULL if full else LIMITED, primaries, frame.color_trc)


def _orientation(frame: av.VideoFrame) -> int:
    """EXIF's, 1 to 8; 1 where the frame is turned by another angle."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 1
    a, b, _, c, d, *_ = (int(value) for value in np.sign(np.frombuffer(matrix, np.int32)))
    return ORIENTATIONS.get((a, b, c, d), 1)


def _notices(frame: av.VideoFrame) -> Iterator[str]:
    if frame.interlaced_frame:
        yield "The video is interlaced, and its frames are upscaled as they are: deinterlace it first."
    if any(component.is_alpha for component in frame.format.components):
        yield "The video's transparency is left out."
    if any(kind in frame.side_data for kind in DYNAMIC):
        yield "The video's HDR curve and primaries are kept, but not its mastering data or dynamic HDR."
