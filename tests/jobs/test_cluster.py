"""Files over a real Ray cluster of two workers on this machine, some of which are killed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from limits import HANGING_SECONDS
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families.loading import load
from onestep_sr.sr_models.files.whole import remove_temporaries
from onestep_sr.sr_models.jobs import cluster
from onestep_sr.sr_models.jobs.job import FileOptions, Job, Outcome
from onestep_sr.sr_models.jobs.model_choice import ModelChoice
from onestep_sr.sr_models.jobs.plan import plan_jobs
from onestep_sr.sr_models.jobs.run import run_jobs
from PIL import Image
from places import PHOTOS

pytest.importorskip("ray")

PHOTO = PHOTOS / "houses.png"
COUNT = 12
CHOICE = ModelChoice(device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    photo = Image.open(PHOTO).convert("RGB")
    for index in range(COUNT):
        photo.crop((index, index, index + 48, index + 40)).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def expected(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("expected")
    outcomes = list(run_jobs(load().model, plan_jobs([str(pictures)], folder), FileOptions()))
    assert [outcome.status for outcome in outcomes] == ["done"] * COUNT
    return folder


def run(jobs: list[Job], monkeypatch: pytest.MonkeyPatch, **options) -> list[Outcome]:
    """On a local cluster that is never given up because the machine is busy."""
    monkeypatch.setenv("RAY_object_store_memory", "80000000")
    monkeypatch.setenv("RAY_worker_register_timeout_seconds", str(HANGING_SECONDS))
    monkeypatch.setenv("RAY_health_check_failure_threshold", "1000")
    # Ray gives up starting after 30 s, a limit that cannot be set: slow its clock down.
    slow = SimpleNamespace(**vars(time) | {"monotonic": lambda: time.monotonic() / 30})
    monkeypatch.setattr("ray._private.node.time", slow)
    return list(cluster.run_on_cluster("local", CHOICE, jobs, FileOptions(**options), workers=2))


def assert_same_files(folder: Path, expected: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in expected.iterdir())
    for path in folder.glob("*.png"):
        result, wanted = (np.asarray(Image.open(file)).astype(int) for file in (path, expected / path.name))
        # Another number of threads sums in another order: a value may round the other way.
        assert result.shape == wanted.shape and np.abs(result - wanted).max() <= 1, path.name


def mortal_worker(folder: Path) -> type[cluster.Worker]:
    """A worker that notes its process in `folder`, and dies once at work on 03.png and once after 07.png is done.

    Made in a function, so that Ray sends the class itself: its processes cannot import the tests.
    """

    class Mortal(cluster.Worker):
        def __init__(self, choice: ModelChoice):
            super().__init__(choice)
            (folder / str(os.getpid())).touch()

        def run(self, job: Job, options: FileOptions) -> Outcome:
            if job.source.name == "03.png" and self.first("at work"):
                job.target.with_name(f".{job.target.stem}.{os.getpid()}.tmp.png").write_bytes(b"half a picture")
                os.kill(os.getpid(), signal.SIGKILL)
            outcome = super().run(job, options)
            if job.source.name == "07.png" and self.first("done"):
                os.kill(os.getpid(), signal.SIGKILL)
            return outcome

        def first(self, moment: str) -> bool:
            """Whether no process has died at this moment yet."""
            try:
                (folder / moment).touch(exist_ok=False)
            except FileExistsError:
                return False
            return True

    return Mortal


def wait_for_end(process: int) -> None:
    """Returns once the process has ended, however long that takes."""
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return
    ended = select.poll()
    ended.register(descriptor, select.POLLIN)
    ended.poll()
    os.close(descriptor)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux to wait for processes that are not its own")
def test_killed_workers_cost_nothing(pictures, expected, tmp_path, monkeypatch):
    out, notes = tmp_path / "out", tmp_path / "notes"
    notes.mkdir()
    monkeypatch.setattr(cluster, "Worker", mortal_worker(notes))
    jobs = plan_jobs([str(pictures)], out)
    outcomes = run(jobs, monkeypatch)
    workers = [int(path.name) for path in notes.iterdir() if path.name.isdigit()]
    assert (notes / "at work").exists() and (notes / "done").exists() and len(workers) == 4
    assert sorted(outcome.job.source.name for outcome in outcomes) == [f"{i:02}.png" for i in range(COUNT)]
    assert {outcome.status for outcome in outcomes} == {"done"}
    assert_same_files(out, expected)
    again = run(jobs, monkeypatch)
    assert {outcome.status for outcome in again} == {"skipped"}
    for worker in workers:
        wait_for_end(worker)


@pytest.mark.slow
def test_broken_files_are_reported_and_all_others_done(pictures, tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "broken.png").write_bytes(b"no picture")
    Image.open(pictures / "00.png").save(folder / "good.png")
    monkeypatch.chdir(tmp_path)
    outcomes = run(plan_jobs(["in"], Path("out")), monkeypatch)  # relative paths
    assert {(outcome.job.source.name, outcome.status) for outcome in outcomes} == {
        ("broken.png", "failed"),
        ("good.png", "done"),
    }
    assert (tmp_path / "out" / "good.png").is_file()


@pytest.mark.slow
def test_a_model_that_cannot_be_opened_gives_its_own_message(pictures, tmp_path):
    choice = ModelChoice(model=str(tmp_path / "absent.safetensors"), device="cpu")
    with pytest.raises(UserError, match=r"absent\.safetensors does not exist"):
        list(cluster.run_on_cluster("local", choice, plan_jobs([str(pictures)], tmp_path), FileOptions(), workers=1))


def test_an_unreachable_address_is_never_passed_to_ray(pictures, tmp_path, monkeypatch):
    """Ray itself would try for minutes."""
    jobs = plan_jobs([str(pictures)], tmp_path)
    monkeypatch.setattr("ray.init", lambda *args, **options: pytest.fail("Ray was asked to connect"))
    for address, message in (("127.0.0.1:1", "No Ray cluster answers at 127.0.0.1:1"), ("somewhere", "HOST:PORT")):
        with pytest.raises(UserError, match=message):
            list(cluster.run_on_cluster(address, CHOICE, jobs, FileOptions()))


def test_an_unreachable_address_ends_the_command(pictures, tmp_path):
    command = [sys.executable, "-m", "onestep_sr", "upscale", str(pictures), "-o", str(tmp_path)]
    result = subprocess.run([*command, "--ray", "127.0.0.1:1"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("onestep-sr: No Ray cluster answers at 127.0.0.1:1")


def test_temporary_files_of_a_lost_worker_are_removed(tmp_path):
    target = tmp_path / "a.png"
    for name in (".a.17.tmp.png", ".ab.17.tmp.png", "a.png"):
        (tmp_path / name).touch()
    remove_temporaries(target, of_dead_only=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".ab.17.tmp.png", "a.png"]


def test_workers_get_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    choice = cluster.absolute(ModelChoice("some.pth", autoencoder=Path("vae.pth")))
    assert (choice.model, choice.autoencoder) == (str(tmp_path / "some.pth"), tmp_path / "vae.pth")
    assert cluster.absolute(ModelChoice()).model == "bundled"
    assert cluster.absolute(Job(Path("a.png"), Path("b.png"))) == Job(tmp_path / "a.png", tmp_path / "b.png")
