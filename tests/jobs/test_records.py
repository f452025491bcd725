"""Finished means this source with these settings; what this program did not make is kept; nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from formula_model import Formula, formula_model, picture
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.files.picture import Picture
from onestep_sr.sr_models.files.spool import Spool, SpoolSize
from onestep_sr.sr_models.files.write import write_picture
from onestep_sr.sr_models.jobs import records
from onestep_sr.sr_models.jobs.job import FileOptions, Job, Outcome
from onestep_sr.sr_models.jobs.model_choice import ModelChoice
from onestep_sr.sr_models.jobs.run import run_jobs

MODEL = formula_model()
USUAL = FileOptions(fingerprint="one")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "in").mkdir()
    write_picture(tmp_path / "in" / "a.png", Picture(picture(12, 10)[0]))
    return Job(tmp_path / "in" / "a.png", tmp_path / "out" / "a.png")


def run(job: Job, options: FileOptions = USUAL, model=MODEL) -> Outcome:
    [outcome] = run_jobs(model, [job], options)
    return outcome


CHANGES = {
    "scale": replace(USUAL, upscale=UpscaleOptions(scale=2)),
    "seed": replace(USUAL, upscale=UpscaleOptions(seed=1)),
    "tile": replace(USUAL, upscale=UpscaleOptions(tile=128)),
    "color": replace(USUAL, upscale=UpscaleOptions(color="adain")),
    "model": replace(USUAL, fingerprint="two"),
    "quality": replace(USUAL, quality=50),
    "metadata": replace(USUAL, strip=True),
    "comparison": replace(USUAL, compare=True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_result_of_other_settings_is_redone(job, change) -> None:
    assert [run(job).status, run(job).status] == ["done", "skipped"]
    assert [run(job, CHANGES[change]).status, run(job, CHANGES[change]).status] == ["done", "skipped"]


def test_a_result_of_another_recipe_is_redone(job) -> None:
    run(job)
    assert run(job, model=replace(MODEL, recipe=replace(MODEL.recipe, name="other"))).status == "done"


def test_a_result_of_another_source_is_redone(job) -> None:
    run(job)
    status = job.source.stat()
    content = job.source.read_bytes()
    write_picture(job.source, Picture(picture(12, 10, seed=1)[0]))
    os.utime(job.source, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [run(job).status, run(job).status] == ["done", "skipped"]
    job.source.write_bytes(content)
    assert run(job).status == "done"
    os.utime(job.source)
    assert run(job).status == "skipped", "the same content at another time is the same source"


def other_of(job: Job) -> Job:
    """From another file of the same name to the same target."""
    source = job.source.parent.parent / "other" / "a.png"
    source.parent.mkdir(exist_ok=True)
    write_picture(source, Picture(picture(12, 10, seed=2)[0]))
    return replace(job, source=source)


def test_a_result_of_another_file_is_kept(job) -> None:
    run(job)
    before = job.target.read_bytes()
    outcome = run(other_of(job))
    assert outcome.status == "failed" and f"was made from {job.source}: add --overwrite" in outcome.reason
    assert job.target.read_bytes() == before
    job.source.rename(job.source.with_name("renamed.png"))
    renamed = replace(job, source=job.source.with_name("renamed.png"))
    assert [run(renamed).status, run(renamed, CHANGES["seed"]).status] == ["skipped", "done"]


def test_another_process_may_be_faster(job) -> None:
    class Slow(Formula):
        def __call__(self, *inputs):
            run(job)
            return super().__call__(*inputs)

    outcome = run(other_of(job), model=replace(MODEL, denoiser=Slow()))
    assert outcome.status == "failed" and f"was made from {job.source}" in outcome.reason
    assert run(job).status == "skipped"
    assert sorted(path.name for path in job.target.parent.iterdir()) == [records.FOLDER, "a.png"]


def test_a_comparison_of_somebody_else_is_kept(job) -> None:
    job.target.parent.mkdir()
    job.comparison.write_bytes(b"precious")
    outcome = run(job, CHANGES["comparison"])
    assert outcome.status == "failed" and str(job.comparison) in outcome.reason
    assert job.comparison.read_bytes() == b"precious"


@pytest.mark.skipif(os.name == "nt", reason="devices differ")
@pytest.mark.parametrize("name", ["pipe.png", "/dev/zero"])
def test_what_has_no_end_is_no_source(job, name) -> None:
    source = job.source.parent / name
    if name == "pipe.png":
        os.mkfifo(source)
    outcome = run(replace(job, source=source))
    assert outcome.status == "failed" and "is not a file" in outcome.reason
    assert ModelChoice(str(source)).fingerprint()


def test_a_picture_that_memory_cannot_hold_is_refused_before_it_is_read(job, monkeypatch) -> None:
    monkeypatch.setattr("onestep_sr.sr_models.jobs.run.available", lambda device: 12 * 10 * 48 - 1)
    outcome = run(job)
    assert outcome.status == "failed" and "megapixels, which take about" in outcome.reason


def test_a_file_of_somebody_else_is_kept(job) -> None:
    job.target.parent.mkdir()
    job.target.write_bytes(b"precious")
    outcome = run(job)
    assert outcome.status == "failed" and "add --overwrite, or choose another output" in outcome.reason
    assert job.target.read_bytes() == b"precious"
    assert run(job, replace(USUAL, overwrite=True)).status == "done"
    assert run(job).status == "skipped"


def test_a_result_that_was_changed_since_is_kept(job) -> None:
    run(job)
    job.target.write_bytes(job.target.read_bytes() + b"edited")
    assert run(job, CHANGES["seed"]).status == "failed"
    assert job.target.read_bytes().endswith(b"edited")


def test_a_file_in_place_of_the_records_is_named(job) -> None:
    job.target.parent.mkdir()
    (job.target.parent / records.FOLDER).write_text("mine")
    outcome = run(job)
    assert outcome.status == "failed" and f"{job.target.parent / records.FOLDER} is not a folder" in outcome.reason
    assert [path.name for path in job.target.parent.iterdir()] == [records.FOLDER]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"made": 3}', '{"made": [{"size": 1}]}', "[" * 100_000])
def test_a_broken_record_is_none(job, content) -> None:
    run(job)
    [record] = (job.target.parent / records.FOLDER).iterdir()
    record.write_text(content)
    assert run(job).status == "failed", "it cannot be said who made the result"
    assert run(job, replace(USUAL, overwrite=True)).status == "done"


def test_a_kill_before_the_rename_keeps_the_old_result_ours(job, monkeypatch) -> None:
    run(job)
    before = job.target.read_bytes()

    class Killed(BaseException):
        pass

    def killed(source, target):
        if Path(target) == job.target:
            raise Killed
        return rename(source, target)

    rename = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            run(job, CHANGES["seed"])
    assert job.target.read_bytes() == before
    assert run(job).status == "skipped"
    assert run(job, CHANGES["seed"]).status == "done"


def test_what_a_killed_process_left_is_removed_and_a_living_ones_kept(job) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    job.target.parent.mkdir()
    for process in (ended.pid, os.getppid()):
        (job.target.parent / f".a.{process}.tmp.png").write_bytes(b"half")
    assert run(job).status == "done"
    assert sorted(path.name for path in job.target.parent.glob(".a.*")) == [f".a.{os.getppid()}.tmp.png"]


def test_a_missing_source_is_reported_as_before(job) -> None:
    run(job)
    job.source.unlink()
    outcome = run(job)
    assert outcome.status == "failed" and "is not a file" in outcome.reason


def test_a_model_is_known_by_its_content(tmp_path) -> None:
    (tmp_path / "m.pth").write_bytes(b"one")
    (tmp_path / "copy.pth").write_bytes(b"one")
    (tmp_path / "lora").mkdir()
    choice = ModelChoice(str(tmp_path / "m.pth"))
    first = choice.fingerprint()
    assert replace(choice, recipe="sinsr").fingerprint() != first
    assert replace(choice, lora=tmp_path / "lora").fingerprint() != first
    (tmp_path / "m.pth").write_bytes(b"two")
    assert choice.fingerprint() != first
    assert ModelChoice().fingerprint() == ModelChoice().fingerprint() != first
    assert ModelChoice(str(tmp_path / "none.pth")).fingerprint()


@pytest.mark.parametrize(
    ("lora", "partner"),
    [
        pytest.param("s3diff.pkl", "de_net.pth", id="s3diff"),
        pytest.param("transformer.safetensors", "vae.safetensors", id="tsd-sr"),
        pytest.param("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors", id="gdpo"),
    ],
)
def test_a_loras_other_file_belongs_to_the_model(tmp_path, lora, partner) -> None:
    choice = ModelChoice(lora=tmp_path / lora)
    for name, content in ((lora, b"one"), (partner, b"two"), ("other.pkl", b"three")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    first = choice.fingerprint()
    (tmp_path / "other.pkl").write_bytes(b"four")
    assert choice.fingerprint() == first
    (tmp_path / partner).write_bytes(b"five")
    changed = choice.fingerprint()
    assert changed != first
    (tmp_path / partner).unlink()
    assert choice.fingerprint() not in (first, changed)


# The spool


SIZE = SpoolSize(8, 4, 3)


def test_a_spool_is_for_one_process_at_a_time(tmp_path) -> None:
    with Spool(tmp_path / "a.png", SIZE, {}) as spool:
        spool.append(torch.ones(3, 2, 4))
        with pytest.raises(UserError, match=r"a\.png is being written by another process"):
            Spool(tmp_path / "a.png", SIZE, {})
        assert torch.equal(spool.read(0, 2), torch.ones(3, 2, 4))
    with Spool(tmp_path / "a.png", SIZE, {}) as spool:
        assert spool.finished == 2
        spool.discard()
    assert not list(tmp_path.iterdir())


def test_a_spool_without_rows_is_not_kept(tmp_path) -> None:
    with Spool(tmp_path / "a.png", SIZE, {}):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("finished", [-5, 9, 10**30, 2.0, True, "2", None, [2]])
def test_records_that_cannot_be_right_are_not_used(tmp_path, finished) -> None:
    with Spool(tmp_path / "a.png", SIZE, {}) as spool:
        spool.append(torch.ones(3, 4, 4))
    record = tmp_path / ".a.png.part.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"finished": finished}))
    with Spool(tmp_path / "a.png", SIZE, {}) as spool:
        assert spool.finished == 0


def test_a_spool_that_is_cut_while_it_is_read_is_an_error(tmp_path) -> None:
    with Spool(tmp_path / "a.png", SIZE, {}) as spool:
        spool.append(torch.ones(3, 4, 4))
        os.truncate(spool.path, 30)
        with pytest.raises(UserError, match="was truncated while it was in use"):
            spool.read(0, 4)
