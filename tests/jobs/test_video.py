"""Videos through a model: what is kept of the source, a run that is killed, and what is in memory."""

from __future__ import annotations

import signal
import subprocess
import sys
import weakref
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import onestep_sr
import pytest
import torch
from formula_model import formula_model
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.files.picture import from_values
from onestep_sr.sr_models.files.read import read_picture
from onestep_sr.sr_models.jobs.job import FileOptions, Job, Outcome
from onestep_sr.sr_models.jobs.plan import plan_jobs
from onestep_sr.sr_models.jobs.run import run_jobs
from sample_videos import MILLISECONDS, VARIABLE, Clip, packets, read_clip, scenes, write_clip

MODEL = formula_model()
FINE = FileOptions(quality=100)


def run(source: Path, target: str, options: FileOptions = FINE, **arguments) -> Outcome:
    [outcome] = run_jobs(MODEL, [Job(source, source.with_name(target))], options, **arguments)
    return outcome


def noise(found: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference in luma, of 255: videos keep a quarter of the colours."""
    return float(np.sqrt(np.mean(((found.astype(float) - expected) @ (0.299, 0.587, 0.114)) ** 2)))


def enlarged(frame: np.ndarray, options: UpscaleOptions = UpscaleOptions()) -> np.ndarray:  # noqa: B008 (frozen)
    result = upscale(MODEL, from_values(frame).pixels[None], options)[0]
    return result.permute(1, 2, 0).numpy() * 255


CONTAINERS = {
    "mp4": ("libx264", "aac", True),
    "mov": ("libx264", "aac", True),
    "mkv": ("libx264", "flac", True),
    "webm": ("libvpx-vp9", "libopus", False),
}


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_sound_subtitles_times_and_texts_are_kept(tmp_path, suffix) -> None:
    codec, sound, has_subtitles = CONTAINERS[suffix]
    clip = Clip(codec, times=VARIABLE, sound=sound, subtitles=has_subtitles, aspect=Fraction(4, 3))
    source = write_clip(tmp_path / f"a.{suffix}", scenes(len(VARIABLE)), clip)
    outcome = run(source, f"out.{suffix}")
    assert (outcome.status, outcome.notices) == ("done", ())
    before, after = read_clip(source), read_clip(tmp_path / f"out.{suffix}")
    assert after.times == before.times == [time * MILLISECONDS for time in VARIABLE]
    assert after.kinds == before.kinds and after.languages == before.languages
    assert after.aspect == before.aspect and after.chapters == ["One"]
    for kind in ("audio", "subtitle")[: 1 + has_subtitles]:
        assert packets(tmp_path / f"out.{suffix}", kind) == packets(source, kind)
    assert after.texts["title"] == "A title"
    assert (
        "One-Step SR " in after.texts["comment"] and "(model: Test model, scale: 4, seed: 0)" in after.texts["comment"]
    )
    for small, large in zip(before.frames, after.frames, strict=True):
        assert noise(large, enlarged(small)) < 3
    assert {path.name for path in tmp_path.iterdir()} == {source.name, f"out.{suffix}", ".onestep-sr"}


def cut_after(source: Path, packets_kept: int) -> Path:
    """A copy with its index at the start, which ends with one of its packets."""
    whole, cut = source.with_stem("whole"), source.with_stem("cut")
    with av.open(str(source)) as file, av.open(str(whole), "w", options={"movflags": "faststart"}) as copy:
        stream = copy.add_stream_from_template(file.streams.video[0])
        for packet in file.demux(video=0):
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    with av.open(str(whole)) as file:
        ends = [packet.pos + packet.size for packet in file.demux(video=0) if packet.size]
    cut.write_bytes(whole.read_bytes()[: ends[packets_kept - 1]])
    return cut


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_video_whose_end_is_missing_is_named(tmp_path, suffix) -> None:
    cut = cut_after(write_clip(tmp_path / f"a.{suffix}", scenes(40)), packets_kept=20)
    outcome = run(cut, f"out.{suffix}")
    assert outcome.status == "done"
    [notice] = outcome.notices
    missing = 40 * 0.04 - float(read_clip(tmp_path / f"out.{suffix}").times[-1]) - 0.04
    assert notice == f"The last {missing:.1f} s of the video hold no frames: the file may be truncated."
    assert run(cut.with_stem("whole"), f"whole-out.{suffix}").notices == ()


def test_frames_before_a_broken_one_are_not_left_beside_the_result(tmp_path) -> None:
    source = write_clip(tmp_path / "a.mp4", scenes(80))
    begin = cut_after(source, packets_kept=50).stat().st_size
    cut = cut_after(source, packets_kept=80)
    content = bytearray(cut.read_bytes())
    content[begin : begin + 4] = b"\xff" * 4  # the length of a unit
    cut.write_bytes(content)
    outcome = run(cut, "out.mp4")
    assert outcome.status == "failed" and "cut.mp4 is broken" in str(outcome.reason)
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "whole.mp4", "cut.mp4"}


def test_nothing_is_said_of_the_source_or_the_run_where_metadata_is_stripped(tmp_path) -> None:
    source = write_clip(tmp_path / "a.mkv", scenes(2))
    assert run(source, "out.mkv", replace(FINE, strip=True)).status == "done"
    assert read_clip(tmp_path / "out.mkv").texts.keys() == {"encoder"}


FULL_709, HDR, OF_PAL = (1, 2, 1, 13), (9, 1, 9, 16), (5, 1, 5, 6)


@pytest.mark.parametrize(
    ("suffix", "colors"),
    [("mp4", FULL_709), ("webm", FULL_709), ("mkv", HDR), ("mp4", HDR), ("mov", OF_PAL), ("webm", OF_PAL)],
    ids=["709-mp4", "709-webm", "HDR-mkv", "HDR-mp4", "PAL-mov", "PAL-webm"],
)
def test_tags_of_colour_are_kept(tmp_path, suffix, colors) -> None:
    deep = colors == HDR
    pixels = "yuv420p10le" if deep else "yuv420p"
    source = write_clip(tmp_path / "a.mkv", scenes(2, 64, 64), Clip("ffv1", pixels, colors=colors, options=()))
    outcome = run(source, f"out.{suffix}")
    assert (outcome.status, outcome.reason) == ("done", "")
    before, after = read_clip(source), read_clip(tmp_path / f"out.{suffix}")
    first = after.first
    assert (first.colorspace, first.color_range, first.color_primaries, first.color_trc) == colors
    assert first.format.name.removeprefix("yuvj420p") in ("", pixels)
    assert after.kinds == [("video", "vp9" if suffix == "webm" else "hevc" if deep else "h264")]
    assert abs(after.frames[0].mean() - before.frames[0].mean()) < 1.5


def test_a_small_video_without_tags_gets_those_that_players_assume_for_it(tmp_path) -> None:
    """They assume other ones for the large result."""
    source = write_clip(tmp_path / "a.mp4", scenes(2))
    assert run(source, "out.mp4").status == "done"
    first = read_clip(tmp_path / "out.mp4").first
    assert (first.colorspace, first.color_range, first.color_primaries) == (6, 1, 6)


def test_odd_sides_repeat_their_last_row_and_column(tmp_path) -> None:
    source = write_clip(tmp_path / "a.mkv", scenes(3), Clip())
    options = replace(FINE, upscale=UpscaleOptions(scale=1.35))
    outcome = run(source, "out.mp4", options)
    assert outcome.notices == (
        "The result has 44 x 32 px, as sides of videos are even: the last row or column is repeated.",
    )
    before, after = read_clip(source), read_clip(tmp_path / "out.mp4")
    expected = enlarged(before.frames[0], options.upscale)
    assert expected.shape == (32, 43, 3) and after.frames[0].shape == (32, 44, 3)
    assert noise(after.frames[0][:, :43], expected) < 3 and noise(after.frames[0][:, 43], expected[:, 42]) < 4


def test_a_turned_video_is_upright(tmp_path) -> None:
    source = write_clip(tmp_path / "a.mov", scenes(2), Clip(turn=(90, False, False), aspect=Fraction(4, 3)))
    assert run(source, "out.mov").status == "done"
    before, after = read_clip(source), read_clip(tmp_path / "out.mov")
    assert before.first.rotation == 90 and after.first.rotation == 0 and after.aspect == Fraction(3, 4)
    assert noise(after.frames[0], enlarged(np.rot90(before.frames[0]).copy())) < 3


def test_a_comparison_shows_the_first_frame(tmp_path) -> None:
    source = write_clip(tmp_path / "a.mp4", scenes(2))
    outcome = run(source, "out.mp4", replace(FINE, compare=True))
    assert outcome.notices == ("The comparison shows the video's first frame.",)
    assert read_picture(tmp_path / "out.compare.png").pixels.shape == (3, 96, 256)


def test_what_cannot_be_encoded_is_refused(tmp_path) -> None:
    """PyAV's VP9 has 8 bits only."""
    source = write_clip(tmp_path / "a.mkv", scenes(2), Clip("ffv1", "yuv420p10le", options=()))
    outcome = run(source, "out.webm")
    sentence = "out.webm cannot be encoded with 128 x 96 px and 10 bits: choose mkv, or a smaller size."
    assert outcome.status == "failed" and outcome.reason.endswith(sentence)


# Runs that end early

KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from formula_model import formula_model
from onestep_sr.sr_models.jobs.job import FileOptions, Job
from onestep_sr.sr_models.jobs.run import run_jobs

def progress(done, total, preview):
    if done == 34:
        os.kill(os.getpid(), signal.SIGKILL)

list(run_jobs(formula_model(), [Job(Path({source!r}), Path({target!r}))], FileOptions(quality=100), progress))
"""


def test_a_killed_run_resumes_and_ends_in_the_same_file(tmp_path) -> None:
    source = write_clip(tmp_path / "a.mp4", scenes(40, 16, 16), Clip(sound="aac"))
    tests = str(Path(__file__).parents[1])
    code = KILLED.format(tests=tests, source=str(source), target=str(tmp_path / "out.mp4"))
    search = str(Path(onestep_sr.__file__).parents[1])
    process = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": search, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "out.mp4").exists()
    assert (tmp_path / ".out.mp4.frames" / "00000000.nut").exists()
    shown: list[tuple[int, int]] = []
    outcome = run(source, "out.mp4", progress=lambda done, total, preview: shown.append((done, total)))
    assert outcome.status == "done" and shown == [(number, 40) for number in range(33, 41)]
    assert run(source, "again.mp4").status == "done"
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "again.mp4").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "out.mp4", "again.mp4", ".onestep-sr"}


def interrupt(done: int, total: int, preview: torch.Tensor) -> None:
    if done == 34:
        raise KeyboardInterrupt


@pytest.mark.parametrize("scale", [2, 3])
def test_frames_of_other_settings_are_made_again(tmp_path, scale) -> None:
    source = write_clip(tmp_path / "a.mp4", scenes(36, 16, 16))
    with pytest.raises(KeyboardInterrupt):
        run(source, "out.mp4", replace(FINE, upscale=UpscaleOptions(scale=2)), progress=interrupt)
    shown: list[int] = []
    options = replace(FINE, upscale=UpscaleOptions(scale=scale))
    assert run(source, "out.mp4", options, progress=lambda done, *_: shown.append(done)).status == "done"
    assert shown[0] == (33 if scale == 2 else 1)
    assert {frame.shape for frame in read_clip(tmp_path / "out.mp4").frames} == {(16 * scale, 16 * scale, 3)}


def test_a_run_that_ends_before_the_first_part_leaves_nothing(tmp_path) -> None:
    source = write_clip(tmp_path / "a.mp4", scenes(3))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, "out.mp4", progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_few_frames_are_in_memory_at_once(tmp_path) -> None:
    source = write_clip(tmp_path / "a.mp4", scenes(80, 16, 16))
    results: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def progress(done: int, total: int, preview: torch.Tensor) -> None:
        nonlocal most
        results.append(weakref.ref(preview))
        most = max(most, sum(each() is not None for each in results))

    assert run(source, "out.mp4", progress=progress).status == "done"
    assert len(results) == 80 and most <= 2


# Which results are made


def test_finished_videos_are_skipped_and_those_of_others_kept(tmp_path) -> None:
    source = write_clip(tmp_path / "a.mp4", scenes(2))
    assert [run(source, "out.mp4").status for _ in range(2)] == ["done", "skipped"]
    assert run(source, "out.mp4", replace(FINE, quality=60)).status == "done"
    other = write_clip(tmp_path / "other.mp4", scenes(3))
    kept = other.read_bytes()
    outcome = run(source, "other.mp4")
    assert outcome.status == "failed" and "add --overwrite" in outcome.reason and other.read_bytes() == kept
    assert run(source, "other.mp4", replace(FINE, overwrite=True)).status == "done"


@pytest.mark.parametrize(
    ("source", "clip", "target", "sentence"),
    [
        ("a.mkv", Clip(sound="flac"), "out.webm", "does not support the sound of a.mkv (flac): choose mkv or mov."),
        ("a.mp4", Clip(), "out.png", "out.png has an extension that is not supported for videos: choose one of .mp4, "),
    ],
    ids=["sound", "extension"],
)
def test_what_the_format_does_not_support_is_refused_before_any_work(tmp_path, source, clip, target, sentence) -> None:
    outcome = run(write_clip(tmp_path / source, scenes(2), clip), target)
    assert outcome.status == "failed" and sentence in outcome.reason
    assert [path.name for path in tmp_path.iterdir()] == [source]


def test_subtitles_that_the_format_does_not_support_are_named(tmp_path) -> None:
    source = write_clip(tmp_path / "a.mp4", scenes(2), Clip(subtitles=True))
    assert run(source, "out.mkv").notices == (
        "Not in the result, as its format does not support it: subtitles (mov_text).",
    )


def test_a_broken_video_is_named_and_leaves_nothing(tmp_path) -> None:
    source = tmp_path / "a.mp4"
    source.write_bytes(b"\0\0\0\x18ftypmp42" + bytes(4000))
    outcome = run(source, "out.mp4")
    assert outcome.status == "failed" and outcome.reason.startswith(f"{source} is broken, or of a kind")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_without_pyav_the_sentence_says_how_to_install_it(tmp_path, monkeypatch) -> None:
    source = write_clip(tmp_path / "a.mp4", scenes(2))
    for name in [name for name in sys.modules if name.startswith("onestep_sr.sr_models") and "video" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "av", None)
    outcome = run(source, "out.mp4")
    assert outcome.status == "failed"
    assert outcome.reason == f"{source} is a video, which needs PyAV 17 or newer: pip install -U av."


def test_a_folder_of_pictures_and_videos_is_planned(tmp_path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.mp4", "b.AVI", "c.png", "d.webm", "e.ts", "f.mkv"):
        (folder / name).touch()
    heard: list[str] = []
    jobs = plan_jobs([str(folder)], tmp_path / "out", ".jpg", heard.append)
    assert [job.target.name for job in jobs] == ["a.mp4", "b.mkv", "c.jpg", "d.webm", "f.mkv"]
    assert heard == [f"{folder}: 1 file is not a picture and is left out (e.ts)."]
