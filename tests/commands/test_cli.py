"""The command line as a person uses it: real processes, real files, the bundled model."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import small_peft
import small_students
import small_unet
import torch
from limits import HANGING_SECONDS
from onestep_sr.sr_models.commands.upscale import Evaluate
from onestep_sr.sr_models.core.devices import default_dtype
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.families import bundled, conv_sr
from onestep_sr.sr_models.families.loading import load
from onestep_sr.sr_models.networks.conv_sr import ConvSR, ConvSRConfig
from PIL import Image
from places import PHOTOS, ROOT
from sample_videos import Clip, read_clip, scenes, write_clip

PHOTO = sorted(PHOTOS.glob("*.png"))[0]
ONE_END = ["--model", "one.safetensors"]  # a model with one set of weights
COMMAND = [sys.executable, "-m", "onestep_sr"]


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=HANGING_SECONDS, check=False)


def small(path: Path, mode: str = "RGB", size: tuple[int, int] = (24, 20)) -> Path:
    """A small real picture in any mode."""
    Image.open(PHOTO).convert("RGB").resize(size).convert(mode).save(path)
    return path


def assert_one_sentence(text: str) -> None:
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) == 1, text
    assert lines[0].endswith(".")


def test_upscales_a_photo_and_writes_a_comparison(tmp_path: Path) -> None:
    result = run("upscale", PHOTO, "-o", tmp_path, "--compare")
    assert result.returncode == 0, result.stderr
    width, height = Image.open(PHOTO).size
    large = Image.open(tmp_path / PHOTO.name)
    assert large.size == (4 * width, 4 * height)
    strip = Image.open(tmp_path / f"{PHOTO.stem}.compare.png")
    assert strip.size == (8 * width, 4 * height)
    # The right half is the result itself, the left one plain enlargement: near it, but not it.
    assert np.array_equal(np.asarray(strip)[:, 4 * width :], np.asarray(large))
    shrunk = np.asarray(large.resize((width, height), Image.Resampling.BOX), dtype=float)
    assert np.abs(shrunk - np.asarray(Image.open(PHOTO).convert("RGB"), dtype=float)).mean() < 6


@pytest.mark.slow
def test_no_bar_of_a_library_is_shown(tmp_path: Path) -> None:
    torch.save(small_peft.hypir(small_unet.write(tmp_path / "base", "2.1-base")), tmp_path / "hypir.pth")
    files = ("--base", tmp_path / "base", "--lora", tmp_path / "hypir.pth")
    result = run("upscale", small(tmp_path / "in.png"), "-o", tmp_path / "out.png", *files)
    assert result.returncode == 0 and result.stderr == ""


def test_one_input_to_a_named_file_at_another_scale(tmp_path: Path) -> None:
    source = small(tmp_path / "in.png")
    result = run("upscale", source, "-o", tmp_path / "out.webp", "--scale", "2.5", "--color", "adain", "--tile", "128")
    assert result.returncode == 0, result.stderr
    assert Image.open(tmp_path / "out.webp").size == (60, 50)


def test_folders_keep_their_shape_and_equal_names_do_not_collide(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    small(tmp_path / "in" / "a.png")
    small(tmp_path / "in" / "a.jpg")
    small(tmp_path / "in" / "sub" / "b.gif", "P")
    result = run("upscale", tmp_path / "in", "-o", tmp_path / "out", "--format", "png")
    assert result.returncode == 0, result.stderr
    written = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png"))
    assert written == ["a.png", "a_png.png", "sub/b.png"]


def test_a_folder_of_pictures_and_videos(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    small(tmp_path / "in" / "a.png")
    write_clip(tmp_path / "in" / "b.mp4", scenes(3, 20, 24), Clip(times=(0, 40, 100), sound="aac"))
    for counts in ("2 done, 0 skipped", "0 done, 2 skipped"):
        result = run("upscale", tmp_path / "in", "-o", tmp_path / "out", "--scale", "2", "--format", "jpg")
        assert result.returncode == 0 and counts in result.stdout, result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".onestep-sr", "a.jpg", "b.mp4"]
    clip = read_clip(tmp_path / "out" / "b.mp4")
    assert [float(time) for time in clip.times] == [0, 0.04, 0.1]
    assert {frame.shape for frame in clip.frames} == {(40, 48, 3)}


def test_a_broken_file_is_reported_and_the_others_are_upscaled(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    small(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_bytes(b"")
    small(tmp_path / "in" / "c.png")
    result = run("upscale", tmp_path / "in", "-o", tmp_path / "out")
    assert result.returncode == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [".onestep-sr", "a.png", "c.png"]
    assert "2 done, 0 skipped" in result.stdout
    assert "b.png" in result.stderr
    assert_one_sentence(result.stderr)


def test_a_second_run_skips_finished_files(tmp_path: Path) -> None:
    source = small(tmp_path / "a.png")
    out = tmp_path / "out"
    assert run("upscale", source, "-o", out).returncode == 0
    before = (out / "a.png").stat().st_mtime_ns
    again = run("upscale", source, "-o", out)
    assert "1 skipped" in again.stdout
    assert (out / "a.png").stat().st_mtime_ns == before
    assert "1 done" in run("upscale", source, "-o", out, "--overwrite").stdout
    assert (out / "a.png").stat().st_mtime_ns != before


def test_a_second_run_with_other_settings_redoes_the_file(tmp_path: Path) -> None:
    source, out = small(tmp_path / "a.png"), tmp_path / "out"
    for scale, width in (("2", 48), ("3", 72)):
        assert "1 done" in run("upscale", source, "-o", out, "--scale", scale).stdout
        assert Image.open(out / "a.png").width == width
    small(source, size=(32, 20))
    assert "1 done" in run("upscale", source, "-o", out, "--scale", "3").stdout
    assert Image.open(out / "a.png").width == 96
    small(out / "a.png")
    result = run("upscale", source, "-o", out, "--scale", "3")
    assert result.returncode == 1 and "add --overwrite, or choose another output" in result.stderr
    assert Image.open(out / "a.png").width == 24


@pytest.mark.skipif(os.name == "nt", reason="names there are always printable as Unicode")
@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8:strict"])
def test_a_name_that_the_terminal_cannot_print_ends_no_batch(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "in").mkdir()
    names = ["1.png", "2 \u732b.png", "3 \udcff.png", "4 \u00e9.png"]
    for name in names:
        small(tmp_path / "in" / name)
    (tmp_path / "in" / "5 \u732b \udcff.png").write_bytes(b"broken")
    environment = os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "80"}
    command = [*COMMAND, "upscale", tmp_path / "in", "-o", tmp_path / "out"]
    result = subprocess.run(command, capture_output=True, env=environment, timeout=HANGING_SECONDS, check=False)
    assert result.returncode == 1 and b"4 done, 0 skipped" in result.stdout, result.stderr
    assert b"Traceback" not in result.stderr and b"5 " in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == names


@pytest.mark.skipif(os.name == "nt", reason="names there have no control characters")
def test_control_characters_of_a_name_are_not_sent_to_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    small(tmp_path / "in" / "a\nb.png")
    (tmp_path / "in" / "\x1b[31mc\n.png").write_bytes(b"broken")
    result = run("upscale", tmp_path / "in", "-o", tmp_path / "out", "--compare")
    assert "a\\nb.compare.png" in result.stdout and "\\x1b[31mc\\n.png" in result.stderr
    assert "\x1b" not in result.stdout + result.stderr
    assert_one_sentence(result.stderr)


def test_metadata_is_stripped_when_asked(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "A camera"
    Image.open(PHOTO).convert("RGB").resize((24, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert run("upscale", tmp_path / "a.jpg", "-o", tmp_path / "kept.jpg").returncode == 0
    assert run("upscale", tmp_path / "a.jpg", "-o", tmp_path / "bare.jpg", "--strip-metadata").returncode == 0
    kept = Image.open(tmp_path / "kept.jpg").getexif()
    assert kept[0x010F] == "A camera" and kept[0x0131].startswith("One-Step SR")
    assert not dict(Image.open(tmp_path / "bare.jpg").getexif())


def test_the_same_seed_gives_the_same_picture(tmp_path: Path) -> None:
    source, model = small(tmp_path / "a.png"), tmp_path / "noisy.safetensors"
    bundled.save(model, small_students.network(), small_students.STUDENT)
    pixels = []
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        made = run("upscale", source, "-o", tmp_path / f"{name}.png", "--seed", str(seed), "--model", model)
        assert made.returncode == 0, made.stderr
        pixels.append(np.asarray(Image.open(tmp_path / f"{name}.png")))
    assert np.array_equal(pixels[0], pixels[1])
    assert not np.array_equal(pixels[0], pixels[2])


def test_alpha_is_kept(tmp_path: Path) -> None:
    image = Image.open(PHOTO).convert("RGBA").resize((32, 32))
    image.putalpha(Image.fromarray(np.tile(np.arange(32, dtype=np.uint8) * 8, (32, 1))))
    image.save(tmp_path / "a.png")
    assert run("upscale", tmp_path / "a.png", "-o", tmp_path / "b.png").returncode == 0
    alpha = np.asarray(Image.open(tmp_path / "b.png").getchannel("A"), dtype=float)
    expected = (np.arange(128) + 0.5) / 4 - 0.5
    assert np.abs(alpha[64, 16:-16] - 8 * expected[16:-16]).max() < 4


@pytest.mark.skipif(os.name == "nt", reason="signals differ")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals_leave_no_half_file(tmp_path: Path, name: str, code: int) -> None:
    (tmp_path / "in").mkdir()
    for index in range(30):
        small(tmp_path / "in" / f"{index:02}.png", size=(160, 160))
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*COMMAND, "upscale", tmp_path / "in", "-o", out],
        stderr=subprocess.PIPE,
        text=True,
        # A background job inherits an ignored SIGINT, which Python would leave ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    try:
        while process.poll() is None and not list(out.glob("[0-9]*.png")):
            time.sleep(0.05)
        process.send_signal(getattr(signal, name))
        _, errors = process.communicate()
    finally:
        process.kill()
    assert process.returncode == code
    assert_one_sentence(errors)
    files = [path for path in out.iterdir() if path.name != ".onestep-sr"]
    assert 0 < len(files) < 30
    for file in files:
        assert file.suffix == ".png"
        assert not file.name.startswith(".")
        Image.open(file).load()


@pytest.mark.skipif(os.name == "nt", reason="signals differ")
def test_killed_runs_resume_to_the_same_bytes(tmp_path: Path) -> None:
    """Two kills of each kind; `--count 50` is the benchmark's own business."""
    command = [*COMMAND[:2], "onestep_sr.benchmarks.kills", "--count", "2"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=HANGING_SECONDS, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("0 with broken files, 0 resumed with other bytes, 0 with files left over") == 2


def test_models_lists_what_runs_and_what_does_not(tmp_path: Path) -> None:
    shutil.copy(ROOT / "sr_models/weights/onestep-sr-x4.safetensors", tmp_path / "mine.safetensors")
    (tmp_path / "zero.pth").touch()
    result = run("models", tmp_path)
    assert result.returncode == 0
    for text in ("bundled", "tad-sr", "sinsr", "mine.safetensors: One-Step SR network, x4", "zero.pth is empty"):
        assert text in result.stdout


def make_inputs(folder: Path) -> None:
    small(folder / "good.png")
    small(folder / "one.png", size=(1, 1))
    small(folder / "seven.png", size=(7, 40))
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.png").touch()
    (folder / "cut.png").write_bytes(PHOTO.read_bytes()[:2000])
    (folder / "zero.safetensors").touch()
    (folder / "text.pth").write_text("not weights")
    (folder / "a_file").touch()


# Arguments in a folder with the inputs above, and what the sentence must name.
BAD_INPUT = {
    "no such file": (["upscale", "none.png", "-o", "out"], "none.png"),
    "not a picture": (["upscale", "text.png", "-o", "out"], "text.png"),
    "empty file": (["upscale", "empty.png", "-o", "out"], "empty.png"),
    "cut picture": (["upscale", "cut.png", "-o", "out"], "cut.png"),
    "1 x 1 px": (["upscale", "one.png", "-o", "out"], "1 x 1 px"),
    "7 px": (["upscale", "seven.png", "-o", "out"], "7 x 40 px"),
    "scale too small": (["upscale", "good.png", "-o", "out", "--scale", "0.5"], "0.5"),
    "scale too large": (["upscale", "good.png", "-o", "out", "--scale", "9"], "9"),
    "scale of 0": (["upscale", ".", "-o", "out", "--scale", "0"], "Scale 0 is out of range"),
    "scale of nothing": (["upscale", ".", "-o", "out", "--scale", "nan"], "Scale nan is out of range"),
    "overlap for all": (["upscale", "good.png", "one.png", "-o", "out", "--overlap", "4000"], "Overlap 4000 does not"),
    "spill into no folder": (["upscale", "good.png", "-o", "out", "--spill", "none"], "--spill none"),
    "detail without a range": (
        ["upscale", "good.png", "-o", "out", *ONE_END, "--detail", "0.5"],
        "has no --detail",
    ),
    "overlap too large": (["upscale", "good.png", "-o", "out", "--overlap", "4000"], "4000"),
    "onto itself": (["upscale", "good.png", "-o", "good.png"], "good.png"),
    "output under a file": (["upscale", "good.png", "-o", "a_file/out"], "a_file"),
    "unknown output type": (["upscale", "good.png", "-o", "out.bmp"], "out.bmp"),
    "zero-byte checkpoint": (["upscale", "good.png", "-o", "out", "--model", "zero.safetensors"], "zero.safetensors"),
    "no checkpoint": (["upscale", "good.png", "-o", "out", "--model", "none.pth"], "none.pth"),
    "text as checkpoint": (["upscale", "good.png", "-o", "out", "--model", "text.pth"], "text.pth"),
    "no such device": (["upscale", "good.png", "-o", "out", "--device", "mps"], "mps"),
    "no such folder": (["models", "nowhere"], "nowhere"),
    "training without pictures": (["train", "teacher", "nowhere", "-o", "run"], "nowhere"),
    "preparing without pictures": (["prepare", "nowhere", "-o", "out", "--base", "sd3"], "nowhere"),
    "preparing for no base": (["prepare", ".", "-o", "out", "--base", "sd3"], "sd3"),
    "training without data": (["train", "tsd", "nowhere", "-o", "run", "--base", "sd3"], "nowhere"),
    "no such run file": (["train", "tad-sd", "--config", "run.toml"], "run.toml"),
    "crop that does not fit": (["train", "teacher", ".", "-o", "run", "--crop", "100"], "100"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_ends_in_one_sentence(case: str, tmp_path: Path) -> None:
    make_inputs(tmp_path)
    if case == "detail without a range":
        conv_sr.save(tmp_path / ONE_END[1], ConvSR(ConvSRConfig(8, 1)))
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    arguments, named = BAD_INPUT[case]
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert named in result.stderr
    assert_one_sentence(result.stderr)
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert after == before, "nothing is lost, nothing is left behind"


@pytest.mark.skipif(not Path("/dev/shm").is_dir() or os.geteuid() != 0, reason="needs root to mount a tiny disk")
def test_a_full_disk_ends_in_one_sentence(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        result = run("upscale", PHOTO, "-o", disk)
        assert result.returncode == 1
        assert_one_sentence(result.stderr)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_evaluate_compares_a_model_at_several_details(tmp_path) -> None:
    picture = torch.rand(1, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    found = dict(Evaluate(folder=tmp_path, detail=[0.0, 0.5])._upscalers("bundled"))
    assert list(found) == ["bundled, detail 0", "bundled, detail 0.5"]
    for detail, upscaler in zip((0.0, 0.5), found.values(), strict=True):
        expected = upscale(load(dtype=default_dtype(torch.device("cpu"))).model, picture, UpscaleOptions(detail=detail))
        assert torch.equal(upscaler(picture), expected)
