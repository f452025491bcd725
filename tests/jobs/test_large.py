"""Results that do not fit in memory: files by bands, the spool, and a cut run."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from formula_model import Formula, formula_model, picture
from onestep_sr.sr_models.core.model import SRModel
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.tile_policy import TilePolicy
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families.loading import load
from onestep_sr.sr_models.files.picture import Picture
from onestep_sr.sr_models.files.read import read_picture
from onestep_sr.sr_models.files.write import write_picture
from onestep_sr.sr_models.jobs import large
from onestep_sr.sr_models.jobs.job import FileOptions
from onestep_sr.sr_models.jobs.plan import plan_jobs
from onestep_sr.sr_models.jobs.run import run_job, run_jobs
from PIL import Image

BANDED = FileOptions(memory=1)


@pytest.fixture
def model() -> SRModel:
    return formula_model()


# Files


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg"])
@pytest.mark.parametrize("alpha", [False, True])
def test_a_banded_file_equals_the_usual_one(model, suffix, alpha, tmp_path):
    channels = picture(70, 30, 4)[0]
    write_picture(tmp_path / "in.png", Picture(channels[:3], channels[3:] if alpha else None, 8, None))
    results = []
    for name, options in (("usual", FileOptions()), ("banded", BANDED)):
        [job] = plan_jobs([str(tmp_path / "in.png")], tmp_path / f"{name}{suffix}")
        run_job(model, job, replace(options, upscale=UpscaleOptions(color="wavelet"), quality=90))
        results.append(np.asarray(Image.open(job.target)).astype(int))
    assert results[0].shape == results[1].shape == (280, 120, 4 if alpha and suffix != ".jpg" else 3)
    difference = np.abs(results[0] - results[1])
    assert difference.mean() < 1 and (suffix in (".jpg", ".webp") or difference.max() <= 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in.png", f"usual{suffix}", f"banded{suffix}"])


def test_bands_close_a_wrapped_picture_and_weigh_its_detail(model, tmp_path):
    """Where the result goes through a file, its last rows are read again for the first ones."""
    image, options = picture(70, 30)[0], UpscaleOptions(wrap="both", strength=0.5, color="wavelet")
    write_picture(tmp_path / "in.png", Picture(image, bits=16))
    [job] = plan_jobs([str(tmp_path / "in.png")], tmp_path / "out.png")
    run_job(model, job, replace(BANDED, upscale=options))
    expected = upscale(model, read_picture(job.source).pixels[None], options)[0]
    assert (read_picture(job.target).pixels - expected).abs().max() < 1e-3


def test_a_row_of_tiles_that_does_not_fit_is_refused_before_the_run(model, tmp_path, monkeypatch):
    """280 rows of 3000 px in six copies and the network's input, twice as large as the picture, are 63 MB."""
    Image.new("RGB", (375, 35)).save(tmp_path / "in.png")
    monkeypatch.setattr(large, "available", lambda device: 10_000_000)
    [job] = plan_jobs([str(tmp_path / "in.png")], tmp_path / "out.png")
    options = replace(BANDED, upscale=UpscaleOptions(8, tile=512))
    [outcome] = run_jobs(model, [job], options)
    assert outcome.reason == (
        f"{job.source}: A result of 3000 x 280 px takes about 63 MB of memory even row by row, and 10 MB are free: "
        "choose a smaller tile or a smaller size."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]
    [outcome] = run_jobs(model, [job], replace(options, upscale=UpscaleOptions(8, tile=16)))
    assert outcome.status == "done"


# Cut runs


class Cut(Exception):
    pass


def cut_after(tiles: int):
    def progress(done, total, preview):
        if done > tiles:
            raise Cut

    return progress


@pytest.fixture
def job(tmp_path):
    write_picture(tmp_path / "in.png", Picture(picture(160, 30)[0]))
    [job] = plan_jobs([str(tmp_path / "in.png")], tmp_path / "out.png")
    return job


def test_a_cut_run_goes_on_where_it_stopped(model, job, tmp_path):
    with pytest.raises(Cut):
        run_job(model, job, BANDED, cut_after(24))
    assert not job.target.exists()
    record = json.loads((tmp_path / ".out.png.part.json").read_text())
    assert 200 < record["finished"] < 640
    seen = []
    run_job(model, job, BANDED, lambda done, total, preview: seen.append(done))
    assert seen[0] > 10, "the first tiles were done again"
    resumed = job.target.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "out.png"]
    job.target.unlink()
    run_job(model, job, BANDED)
    assert job.target.read_bytes() == resumed


def test_a_cut_run_goes_on_where_more_memory_is_free(model, job, tmp_path):
    """The usual way would do all of it again, and leave the rows beside the result."""
    with pytest.raises(Cut):
        run_job(model, job, BANDED, cut_after(24))
    seen = []
    run_job(model, job, FileOptions(), lambda done, total, preview: seen.append(done))
    assert seen[0] > 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "out.png"]


@pytest.mark.parametrize("change", ["seed", "source", "broken record", "spool cut short"])
def test_rows_of_another_run_are_not_used(change, model, job, tmp_path):
    with pytest.raises(Cut):
        run_job(model, job, BANDED, cut_after(24))
    options = BANDED
    if change == "seed":
        options = replace(BANDED, upscale=UpscaleOptions(seed=1))
    elif change == "source":
        write_picture(job.source, Picture(picture(160, 30, seed=9)[0]))
    elif change == "broken record":
        (tmp_path / ".out.png.part.json").write_text("{")
    else:
        (tmp_path / ".out.png.part").write_bytes(b"short")
    seen = []
    run_job(model, job, options, lambda done, total, preview: seen.append(done))
    assert seen[0] == 1
    result = read_picture(job.target).pixels
    expected = upscale(model, read_picture(job.source).pixels[None], options.upscale)[0]
    assert (result - expected).abs().max() < 0.6 / 255


@pytest.mark.parametrize(
    ("memory", "expected"), [(None, [2 * 32 * 32, 32 * 32]), (1, [32 * 32])], ids=["in memory", "by bands"]
)
def test_memory_runs_out_once_for_all_files(memory, expected, model, tmp_path):
    """In memory with two tiles at once, then with one; after that the tiles are smaller for every file."""

    class Limited(Formula):
        def __call__(self, latent, condition, timestep):
            pixels = len(latent) * latent.shape[-2] * latent.shape[-1]
            if pixels > 2 * 16 * 16:
                failed.append(pixels)
                raise torch.cuda.OutOfMemoryError("out of memory")
            return super().__call__(latent, condition, timestep)

    failed = []
    for name, height in (("a", 160), ("b", 90), ("c", 200)):
        write_picture(tmp_path / f"{name}.png", Picture(picture(height, 30)[0]))
    jobs = plan_jobs([str(tmp_path)], tmp_path / "out")
    options = FileOptions(UpscaleOptions(tile=128), memory=memory)
    notices = []
    outcomes = list(run_jobs(replace(model, denoiser=Limited()), jobs, options, notice=notices.append))
    assert [outcome.status for outcome in outcomes] == ["done"] * 3
    assert notices == ["Memory ran out: the rest of this run uses tiles of 64 px."]
    assert failed == expected


def test_a_run_that_ran_out_of_memory_can_be_cut_and_resumed(model, job):
    """The policy of the first attempt is gone; its rows are kept."""
    with pytest.raises(Cut):
        run_job(model, job, BANDED, cut_after(60), policy=TilePolicy(tile=8))
    seen = []
    run_job(model, job, BANDED, lambda done, total, preview: seen.append(done))
    assert seen[0] == 7, "two rows of three tiles were done again"
    assert read_picture(job.target).pixels.shape == (3, 640, 120)


def test_failures_are_one_sentence_and_leave_no_picture(model, job, tmp_path):
    [outcome] = run_jobs(model, [job], replace(BANDED, compare=True))
    assert outcome.status == "failed" and "leave out --compare" in outcome.reason
    [outcome] = run_jobs(model, [replace(job, target=tmp_path / "out.bmp")], BANDED)
    assert "extension that is not supported" in outcome.reason
    (tmp_path / "folder.png.part").mkdir()
    (tmp_path / ".folder.png.part").mkdir()
    [outcome] = run_jobs(model, [replace(job, target=tmp_path / "folder.png")], BANDED)
    assert outcome.status == "failed" and "cannot be written" in outcome.reason
    with pytest.raises(UserError, match="too small"):
        run_job(model, job, replace(BANDED, upscale=UpscaleOptions(tile=-1)))


def test_the_bundled_model_goes_by_bands(tmp_path):
    bundled = load().model
    write_picture(tmp_path / "in.png", Picture(picture(150, 40)[0]))
    for name, options in (("usual", FileOptions()), ("banded", BANDED)):
        [job] = plan_jobs([str(tmp_path / "in.png")], tmp_path / f"{name}.png")
        run_job(bundled, job, replace(options, upscale=UpscaleOptions(tile=128)))
    usual, banded = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("usual", "banded"))
    assert np.abs(usual - banded).max() <= 1
