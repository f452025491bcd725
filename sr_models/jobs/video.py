"""A video, frame by frame: from file to file, resumed where an earlier run was interrupted."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import groupby
from math import ceil
from pathlib import Path

import av

from ..core.rows import Run
from ..errors import UserError
from ..files.picture import Picture
from ..files.profiles import UnreadableError
from ..files.segments import Segments
from ..files.video import Frame, Video, read_frames, read_video
from ..files.video_write import Encoding, Film, encode, encoding_for, left_out, texts_of, write_video
from ..files.whole import unwritable, write_whole
from ..files.write import write_picture
from .enlarge import before_after, enlarge
from .job import FileOptions, Job
from .records import settings_of
from .release import release

SEGMENT = 32  # frames between two keyframes, and at most lost by an interruption
NOTICED = 0.5  # seconds that a last frame without a duration may be shown longer


def run_video_job(
    run: Run, job: Job, options: FileOptions, ready: Callable[[Path, Path], AbstractContextManager[object]]
) -> None:
    """Upscale the frames into segments beside the target, then write the target from them.

    The segments stay when the run is interrupted, and the same call resumes with them; an uninterrupted run goes
    through the same segments, so that the result is the same. Sound, subtitles and chapters are copied. Raises
    UserError as `upscale`, `read_video` and `encoding_for` do, and for sound that the target's format does not support.
    """
    video = read_video(job.source)
    size = run.options.size(*video.first.pixels.shape[-2:])
    encoding = encoding_for(job.target, video, *size, options.quality)
    for sentence in (*video.notices, left_out(video, job.target), _made_even(size, encoding)):
        if sentence:
            run.notice(sentence)
    settings = settings_of(job, run.model, options) | {"release": release(), "av": av.__version__}
    try:
        with Segments(job.target, settings) as segments:
            if options.compare:
                run.notice("The comparison shows the video's first frame.")
                pictures = before_after(video.first, _enlarged(run, video.first))
                write_picture(job.comparison, pictures, ready=partial(ready, job.comparison))
            times = _fill(segments, run, video, encoding)
            missing = video.length - times[-1] * video.time_base
            if missing > NOTICED:
                run.notice(f"The last {float(missing):.1f} s of the video hold no frames: the file may be truncated.")
            parts = [segments[number] for number in range(ceil((len(times) - 1) / SEGMENT))]
            film = Film(parts, times, encoding, _texts(run, video, options))
            write_whole(job.target, lambda path: write_video(path, video, film), partial(ready, job.target))
            segments.discard()
    except OSError as error:
        raise unwritable(job.target, error) from error
    except av.FFmpegError as error:
        raise UserError(f"{job.target} cannot be written ({error.strerror}): choose another format.") from error


def _made_even(size: tuple[int, int], encoding: Encoding) -> str:
    if size == (encoding.height, encoding.width):
        return ""
    return (
        f"The result has {encoding.width} x {encoding.height} px, as sides of videos are even: the last row or column "
        "is repeated."
    )


def _enlarged(run: Run, picture: Picture) -> Picture:
    return enlarge(run.model, picture, run.options, notice=run.notice, policy=run.policy)


def _fill(segments: Segments, run: Run, video: Video, encoding: Encoding) -> array[int]:
    """Upscale the frames that no segment has yet; returns the times of all, and the end of the last."""
    times = array("q")
    for number, group in groupby(enumerate(_read(video, segments)), lambda pair: pair[0] // SEGMENT):
        frames = _timed(group, times)
        if segments[number].exists():
            deque(frames, maxlen=0)
        else:
            segments.add(number, partial(encode, pictures=_upscaled(frames, run, video), encoding=encoding))
    return times


def _read(video: Video, segments: Segments) -> Iterator[Frame]:
    """The frames; where the file turns out to be broken, no later run can use the segments, as a mended file is another
    source."""
    try:
        yield from read_frames(video)
    except UserError as error:
        if isinstance(error.__cause__, UnreadableError):
            segments.discard()
        raise


def _timed(frames: Iterable[tuple[int, Frame]], times: array[int]) -> Iterator[tuple[int, Frame]]:
    for number, frame in frames:
        times[-1:] = array("q", [frame.time, frame.time + frame.duration])
        yield number, frame


def _upscaled(frames: Iterable[tuple[int, Frame]], run: Run, video: Video) -> Iterator[Picture]:
    for number, frame in frames:
        large = _enlarged(run, frame.picture())
        yield large
        if run.progress is not None:
            run.progress(number + 1, max(video.count, number + 1), large.pixels)


def _texts(run: Run, video: Video, options: FileOptions) -> dict[str, str]:
    """The source's texts, and in the comment how the result was made; or none."""
    if options.strip:
        return {}
    texts = texts_of(video)
    made = options.described(video.first, run.model).text["Software"]
    name = next((key for key in texts if key.lower() == "comment"), "comment")
    return {**texts, name: "; ".join(part for part in (texts.get(name), made) if part)}
