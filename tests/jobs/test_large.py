"""Results that do not fit in memory: bands against the whole, the spool, the row writers, and a cut run."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onestep_sr.sr_models.canvas.noise import noise_rows
from onestep_sr.sr_models.canvas.resample_rows import resized_rows
from onestep_sr.sr_models.canvas.resize import resize, target_size
from onestep_sr.sr_models.codecs.pixel_shuffle import PixelShuffleCodec
from onestep_sr.sr_models.core.banded import BandedRun, matched_rows
from onestep_sr.sr_models.core.model import SRModel
from onestep_sr.sr_models.core.recipe import Recipe
from onestep_sr.sr_models.core.schedule import ResShiftSchedule
from onestep_sr.sr_models.core.step import ResShiftStep
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families.loading import load
from onestep_sr.sr_models.files import row_files
from onestep_sr.sr_models.files.picture import Picture
from onestep_sr.sr_models.files.read import read_picture
from onestep_sr.sr_models.files.row_files import RowPicture, write_rows
from onestep_sr.sr_models.files.write import write_picture
from onestep_sr.sr_models.jobs.job import Options
from onestep_sr.sr_models.jobs.plan import plan_jobs
from onestep_sr.sr_models.jobs.run import run_job, run_jobs
from PIL import Image

BANDED = Options(memory=1)


class Formula:
    """A network that depends on neighbours, noise and place in the tile, so that every mistake shows."""

    dtype = torch.float32

    def run(self, work, shape):
        return work(self)

    def tiles_at_once(self, shape):
        return 2

    def in_float32(self):
        return self

    def __call__(self, latent, condition, timestep):
        return torch.tanh(
            0.5 * latent + 0.2 * torch.roll(latent, 1, dims=-2) + 0.3 * latent.mean((-1, -2), keepdim=True)
        )


@pytest.fixture
def model() -> SRModel:
    step = ResShiftStep(ResShiftSchedule(steps=4, kappa=0.5, min_noise=0.2))
    recipe = Recipe("test", "Test model", "", step, tile=16, overlap=4, multiple=8)
    return SRModel(recipe, Formula(), PixelShuffleCodec(4))


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    noise = torch.rand(1, channels, height + 4, width + 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.avg_pool2d(noise, 5, 1)


# Rows against the whole


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 50), st.integers(8, 20), st.floats(0.3, 8), st.integers(1, 40), st.data())
def test_resized_rows_are_those_of_the_whole(height, width, scale, count, data):
    image, target = picture(height, width), (max(1, round(height * scale)), max(1, round(width * scale)))
    top = data.draw(st.integers(0, target[0] - 1))
    bottom = min(top + count, target[0])
    rows = resized_rows(lambda first, last: image[:, :, first:last], (height, width), target, top, bottom)
    assert torch.allclose(rows, resize(image, target)[:, :, top:bottom], atol=1e-5)


@given(st.integers(0, 300), st.integers(1, 200), st.integers(0, 2**63 - 1))
def test_noise_does_not_depend_on_the_parts_that_are_drawn(top, count, seed):
    whole = noise_rows(2, 3, 0, 520, seed)
    assert torch.equal(noise_rows(2, 3, top, top + count, seed), whole[:, top : top + count])


def test_noise_is_normal_and_blocks_and_seeds_differ():
    noise = noise_rows(4, 100, 0, 256, 7)
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    blocks = noise.split(64, dim=1)
    assert all(not torch.equal(a, b) for i, a in enumerate(blocks) for b in blocks[:i])
    assert not torch.equal(noise, noise_rows(4, 100, 0, 256, 8))


@pytest.mark.parametrize("color", ["none", "wavelet", "adain"])
@pytest.mark.parametrize(
    ("height", "width", "scale", "tile", "overlap"),
    [(75, 30, 4, 64, 16), (90, 17, 2.5, None, None), (41, 33, 8, 96, 48), (70, 21, 1, 64, 0), (100, 9, 3.3, 128, 64)],
)
def test_bands_equal_the_picture_made_at_once(model, color, height, width, scale, tile, overlap):
    image, size = picture(height, width), target_size(height, width, scale)
    whole = upscale(model, image, scale, tile=tile, overlap=overlap, color=color, seed=5)[0]
    plain = torch.cat(list(BandedRun(model, image, size, tile, overlap, seed=5).rows(0)), dim=1)
    rows = matched_rows(lambda top, bottom: plain[:, top:bottom], image, size, color)
    bands = [rows(top, min(top + 37, size[0])) for top in range(0, size[0], 37)]
    assert torch.allclose(torch.cat(bands, dim=1), whole, atol=1e-4)


@pytest.mark.parametrize("first", [1, 63, 64, 130, 299])
def test_bands_can_begin_anywhere(model, first):
    image = picture(75, 30)
    run = BandedRun(model, image, (300, 120))
    whole = torch.cat(list(run.rows(0)), dim=1)
    assert torch.allclose(torch.cat(list(run.rows(first)), dim=1), whole[:, first:], atol=1e-6)


def test_bands_have_the_rescue_in_float32_too(model):
    class Overflowing(Formula):
        dtype = torch.float16

        def in_float32(self):
            return Formula()

        def __call__(self, latent, condition, timestep):
            overflow = torch.where(latent[:, :1] > 1.2, torch.inf, 0)
            overflows.append(bool(overflow.any()))
            return super().__call__(latent, condition, timestep) + overflow

    overflows = []
    image = picture(75, 30)
    rescued = BandedRun(replace(model, denoiser=Overflowing()), image, (300, 120))
    exact = BandedRun(model, image, (300, 120))
    assert torch.allclose(torch.cat(list(rescued.rows(0)), dim=1), torch.cat(list(exact.rows(0)), dim=1), atol=1e-6)
    assert any(overflows) and not all(overflows)


def test_progress_counts_every_tile(model):
    seen = []
    run = BandedRun(model, picture(40, 40), (160, 160))
    list(run.rows(0, lambda done, total, preview: seen.append((done, total, preview.shape))))
    assert [done for done, _, _ in seen] == list(range(1, len(run.plan) + 1))
    assert {total for _, total, _ in seen} == {len(run.plan)}


# Files


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg"])
@pytest.mark.parametrize("alpha", [False, True])
def test_a_banded_file_equals_the_usual_one(model, suffix, alpha, tmp_path):
    channels = picture(70, 30, 4)[0]
    write_picture(tmp_path / "in.png", Picture(channels[:3], channels[3:] if alpha else None, 8, None))
    results = []
    for name, options in (("usual", Options()), ("banded", BANDED)):
        [job] = plan_jobs([str(tmp_path / "in.png")], tmp_path / f"{name}{suffix}")
        run_job(model, job, replace(options, color="wavelet", quality=90))
        results.append(np.asarray(Image.open(job.target)).astype(int))
    assert results[0].shape == results[1].shape == (280, 120, 4 if alpha and suffix != ".jpg" else 3)
    difference = np.abs(results[0] - results[1])
    assert difference.mean() < 1 and (suffix in (".jpg", ".webp") or difference.max() <= 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in.png", f"usual{suffix}", f"banded{suffix}"])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [3, 4])
def test_row_writers_lose_nothing(suffix, bits, channels, tmp_path):
    kind, most = (np.uint8, 255) if bits == 8 else (np.uint16, 65535)
    values = np.random.default_rng(0).integers(0, most + 1, (600, 301, channels)).astype(kind)
    pixels = torch.from_numpy(values.astype(np.float64) / most).permute(2, 0, 1)
    rows = RowPicture(lambda top, bottom: pixels[:, top:bottom], 600, 301, channels, bits, b"a profile")
    path = tmp_path / f"a{suffix}"
    write_rows(path, suffix, rows, 95)
    read = read_picture(path)
    both = read.pixels if read.alpha is None else torch.cat([read.pixels, read.alpha])
    assert read.bits == bits and np.array_equal((both * most).round().numpy(), values.transpose(2, 0, 1))
    with Image.open(path) as image:
        assert image.info["icc_profile"] == b"a profile"


def test_tiffs_are_tiled_and_grow_big(tmp_path, monkeypatch):
    monkeypatch.setattr(row_files, "CLASSIC_TIFF_LIMIT", 1000)
    pixels = picture(300, 270)[0]
    write_rows(tmp_path / "a.tif", ".tif", RowPicture(lambda t, b: pixels[:, t:b], 300, 270), 95)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff and file.pages[0].is_tiled
        assert file.asarray().shape == (300, 270, 3)


def test_eight_bit_tiffs_are_written_in_memory_too(tmp_path):
    pixels = picture(9, 9)[0]
    write_picture(tmp_path / "a.tif", Picture(pixels), quality=70)
    assert (read_picture(tmp_path / "a.tif").pixels - pixels).abs().max() <= 0.5 / 255 + 1e-6


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


@pytest.mark.parametrize("change", ["seed", "source", "broken record", "spool cut short"])
def test_rows_of_another_run_are_not_used(change, model, job, tmp_path):
    with pytest.raises(Cut):
        run_job(model, job, BANDED, cut_after(24))
    options = BANDED
    if change == "seed":
        options = replace(BANDED, seed=1)
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
    expected = upscale(model, read_picture(job.source).pixels[None], 4, seed=options.seed)[0]
    assert (result - expected).abs().max() < 0.6 / 255


def test_failures_are_one_sentence_and_leave_no_picture(model, job, tmp_path):
    [outcome] = run_jobs(model, [job], replace(BANDED, compare=True))
    assert outcome.status == "failed" and "leave out --compare" in outcome.reason
    [outcome] = run_jobs(model, [replace(job, target=tmp_path / "out.gif")], BANDED)
    assert "ending that cannot be written" in outcome.reason
    (tmp_path / "folder.png.part").mkdir()
    (tmp_path / ".folder.png.part").mkdir()
    [outcome] = run_jobs(model, [replace(job, target=tmp_path / "folder.png")], BANDED)
    assert outcome.status == "failed" and "cannot be written" in outcome.reason
    with pytest.raises(UserError, match="too small"):
        run_job(model, job, replace(BANDED, tile=-1))


def test_the_bundled_model_goes_by_bands(tmp_path):
    bundled = load().model
    write_picture(tmp_path / "in.png", Picture(picture(150, 40)[0]))
    for name, options in (("usual", Options()), ("banded", BANDED)):
        [job] = plan_jobs([str(tmp_path / "in.png")], tmp_path / f"{name}.png")
        run_job(bundled, job, replace(options, tile=128))
    usual, banded = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("usual", "banded"))
    assert np.abs(usual - banded).max() <= 1
