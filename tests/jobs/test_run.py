"""Files through a model: what survives besides the pixels, animations and pages, notices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from formula_model import formula_model, picture
from onestep_sr.sr_models.canvas.target import Box
from onestep_sr.sr_models.core.model import DetailRange
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.files.picture import Picture
from onestep_sr.sr_models.files.read import read_picture, read_pictures
from onestep_sr.sr_models.files.write import write_picture
from onestep_sr.sr_models.jobs.job import FileOptions, Job, Outcome
from onestep_sr.sr_models.jobs.run import run_job, run_jobs
from PIL import Image, PngImagePlugin

MODEL = formula_model()
BANDED = FileOptions(memory=1)


def run(source: Path, target: str, options: FileOptions = FileOptions()) -> Outcome:  # noqa: B008 (frozen)
    [outcome] = run_jobs(MODEL, [Job(source, source.with_name(target))], options)
    return outcome


def frames(count: int) -> list[Image.Image]:
    arrays = [
        (picture(16, 12, seed=seed)[0, :3] * 255).round().byte().permute(1, 2, 0).numpy() for seed in range(count)
    ]
    return [Image.fromarray(array) for array in arrays]


@pytest.mark.parametrize("suffix", ["png", "webp", "gif"])
def test_all_frames_of_an_animation_are_upscaled_with_their_durations(tmp_path, suffix) -> None:
    first, *others = frames(3)
    first.save(
        tmp_path / "a.png", save_all=True, append_images=others, duration=[100, 250, 40], loop=2, default_image=False
    )
    assert run(tmp_path / "a.png", f"out.{suffix}").status == "done"
    result = read_pictures(tmp_path / f"out.{suffix}")
    assert (result.kind, len(result)) == ("animation", 3)
    assert [frame.duration for frame in result] == [100, 250, 40]
    for source, large in zip(read_pictures(tmp_path / "a.png"), result, strict=True):
        expected = upscale(MODEL, source.pixels[None])[0]
        assert large.pixels.shape == (3, 64, 48)
        if suffix == "png":
            assert (large.pixels - expected).abs().max() <= 0.51 / 255


def test_an_animation_compares_its_first_frame_and_says_so(tmp_path) -> None:
    first, *others = frames(3)
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=100)
    outcome = run(tmp_path / "a.gif", "out.gif", FileOptions(compare=True))
    assert outcome.notices == ("The comparison shows the first of 3 pictures.",)
    assert Image.open(tmp_path / "out.compare.png").size == (96, 64)


def test_an_animation_that_the_format_does_not_support_is_refused_before_any_work(tmp_path) -> None:
    first, *others = frames(2)
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=100)
    outcome = run(tmp_path / "a.gif", "out.jpg")
    assert outcome.status == "failed" and "does not support an animation of 2 frames" in outcome.reason
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


def test_all_pages_are_upscaled(tmp_path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for height, width in ((16, 12), (10, 20)):
            writer.write(np.full((height, width, 3), 90, np.uint8), photometric="rgb")
    assert run(tmp_path / "a.tif", "out.tif").status == "done"
    assert [tuple(page.pixels.shape[1:]) for page in read_pictures(tmp_path / "out.tif")] == [(64, 48), (40, 80)]


@pytest.mark.parametrize("options", [FileOptions(), BANDED], ids=["in memory", "by bands"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_metadata_is_kept_and_says_how_the_result_was_made(tmp_path, suffix, options) -> None:
    exif, texts = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x010F] = "A camera"
    exif.get_ifd(0x8825)[1] = "N"
    texts.add_text("parameters", "a cat, Steps: 20")
    frames(1)[0].resize((40, 150)).save(tmp_path / "a.png", exif=exif, pnginfo=texts, dpi=(300, 300))
    assert run(tmp_path / "a.png", f"out.{suffix}", options).status == "done"
    made = Image.open(tmp_path / f"out.{suffix}").getexif()
    assert made[0x010F] == "A camera" and made.get_ifd(0x8825)[1] == "N"
    software = made[0x0131]
    assert software.startswith("One-Step SR ") and "scale: 4" in software and "seed: 0" in software
    assert f"model: {MODEL.recipe.title}" in software
    found = read_picture(tmp_path / f"out.{suffix}").metadata
    assert found.dpi == (300, 300)
    if suffix == "png":
        assert found.text["parameters"] == "a cat, Steps: 20"
    outcome = run(tmp_path / "a.png", f"bare.{suffix}", replace(options, strip=True))
    bare = read_picture(tmp_path / f"bare.{suffix}")
    assert outcome.status == "done" and not bare.metadata.text and not bare.metadata.exif.main.keys() & {0x010F, 0x0131}
    assert torch.equal(bare.pixels, read_picture(tmp_path / f"out.{suffix}").pixels)


RANGED = replace(MODEL, detail=DetailRange(0.6, lambda position: MODEL.denoiser))


@pytest.mark.parametrize(
    ("model", "chosen", "expected"),
    [
        (MODEL, UpscaleOptions(), "(model: Test model, scale: 4, seed: 0)"),
        (RANGED, UpscaleOptions(), "(model: Test model, scale: 4, seed: 0, detail: 0.6)"),
        (RANGED, UpscaleOptions(detail=0.25), "(model: Test model, scale: 4, seed: 0, detail: 0.25)"),
        (RANGED, UpscaleOptions(seed=3, target=Box(10, 10)), f"(scale: {Box(10, 10)})"),
    ],
    ids=["fixed", "default detail", "detail", "shrunk"],
)
@pytest.mark.parametrize("memory", [None, 0], ids=["in memory", "by bands"])
def test_a_result_names_what_was_used(tmp_path, model, chosen, expected, memory) -> None:
    Image.new("RGB", (24, 16), (40, 90, 140)).save(tmp_path / "a.png")
    job = Job(tmp_path / "a.png", tmp_path / "out.png")
    run_job(model, job, FileOptions(upscale=chosen, memory=memory))
    software = read_picture(job.target).metadata.text["Software"]
    assert software.startswith("One-Step SR ") and software[software.index("(") :] == expected


def test_values_outside_0_to_1_are_kept_in_floating_point_and_said(tmp_path) -> None:
    values = picture(16, 12)[0, :3].permute(1, 2, 0).numpy() * 2.5
    tifffile.imwrite(tmp_path / "a.tif", values.astype(np.float32), photometric="rgb")
    outcome = run(tmp_path / "a.tif", "out.tif")
    assert outcome.status == "done" and "values from" in " ".join(outcome.notices)
    assert tifffile.imread(tmp_path / "out.tif").max() > 1.1
    outcome = run(tmp_path / "a.tif", "bands.tif", replace(BANDED, memory=0))
    assert outcome.status == "done" and any("row by row" in notice for notice in outcome.notices)
    assert tifffile.imread(tmp_path / "bands.tif").max() <= 1


@pytest.mark.parametrize("options", [FileOptions(), FileOptions(memory=0)], ids=["in memory", "by bands"])
def test_hidden_colours_do_not_show(tmp_path, options) -> None:
    color, alpha = picture(24, 20)[0, :3], torch.zeros(1, 24, 20)
    alpha[:, 6:18, 5:15] = 1
    results = []
    for name, hidden in (("black", 0.0), ("magenta", 1.0)):
        pixels = torch.where(alpha > 0, color, torch.tensor([hidden, 0, hidden])[:, None, None])
        write_picture(tmp_path / f"{name}.png", Picture(pixels, alpha))
        run(tmp_path / f"{name}.png", f"{name}-large.png", options)
        results.append(np.asarray(Image.open(tmp_path / f"{name}-large.png")))
    assert np.array_equal(*results)


@pytest.mark.parametrize("options", [FileOptions(), FileOptions(memory=0)], ids=["in memory", "by bands"])
def test_a_grey_picture_stays_grey(tmp_path, options) -> None:
    write_picture(tmp_path / "a.png", Picture(picture(24, 20)[0, :1].expand(3, -1, -1)))
    run(tmp_path / "a.png", "out.png", options)
    red, green, blue = read_picture(tmp_path / "out.png").pixels
    assert torch.equal(red, green) and torch.equal(red, blue)
