"""Files over a real Ray cluster of two workers on this machine, one of which is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families.loading import load
from onestep_sr.sr_models.jobs import cluster
from onestep_sr.sr_models.jobs.job import Job, Options, Outcome
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
    outcomes = list(run_jobs(load().model, plan_jobs([str(pictures)], folder), Options()))
    assert [outcome.status for outcome in outcomes] == ["done"] * COUNT
    return folder


def run(jobs: list[Job], monkeypatch: pytest.MonkeyPatch, **options) -> list[Outcome]:
    monkeypatch.setenv("RAY_object_store_memory", "80000000")
    return list(cluster.run_on_cluster("local", CHOICE, jobs, Options(**options), workers=2))


def assert_same_files(folder: Path, expected: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in expected.iterdir())
    for path in folder.iterdir():
        result, wanted = (np.asarray(Image.open(file)).astype(int) for file in (path, expected / path.name))
        # Another number of threads sums in another order: a value may round the other way.
        assert result.shape == wanted.shape and np.abs(result - wanted).max() <= 1, path.name


def running_workers() -> list[str]:
    """Process numbers of Ray's workers, by the name that Ray gives them."""
    found = subprocess.run(["pgrep", "-f", "ray::Worker"], capture_output=True, text=True, check=False)
    return found.stdout.split()


@pytest.mark.slow
def test_a_killed_worker_costs_nothing(pictures, expected, tmp_path, monkeypatch):
    out = tmp_path / "out"
    jobs = plan_jobs([str(pictures)], out)
    killed = []

    def kill_one() -> None:
        """As soon as the first file is there, a worker that is at work."""
        end = time.monotonic() + 60
        while time.monotonic() < end and not killed:
            busy = subprocess.run(["pgrep", "-f", "ray::Worker.run"], capture_output=True, text=True, check=False)
            if busy.stdout.split() and out.is_dir() and any(out.glob("[0-9]*.png")):
                killed.append(int(busy.stdout.split()[0]))
                os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one)
    killer.start()
    outcomes = run(jobs, monkeypatch)
    killer.join()
    assert killed, "no worker was found to kill"
    assert sorted(outcome.job.source.name for outcome in outcomes) == [f"{i:02}.png" for i in range(COUNT)]
    assert {outcome.status for outcome in outcomes} == {"done"}
    assert_same_files(out, expected)
    again = run(jobs, monkeypatch)
    assert {outcome.status for outcome in again} == {"skipped"}
    end = time.monotonic() + 20
    while running_workers() and time.monotonic() < end:
        time.sleep(0.1)
    assert not running_workers()


@pytest.mark.slow
def test_broken_files_are_reported_and_the_rest_goes_on(pictures, tmp_path, monkeypatch):
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
def test_a_model_that_cannot_be_opened_ends_in_its_own_sentence(pictures, tmp_path):
    choice = ModelChoice(model=str(tmp_path / "absent.safetensors"), device="cpu")
    with pytest.raises(UserError, match=r"absent\.safetensors does not exist"):
        list(cluster.run_on_cluster("local", choice, plan_jobs([str(pictures)], tmp_path), Options(), workers=1))


def test_an_address_that_nobody_answers_is_told_soon(pictures, tmp_path):
    command = [sys.executable, "-m", "onestep_sr", "upscale", str(pictures), "-o", str(tmp_path)]
    began = time.monotonic()
    result = subprocess.run([*command, "--ray", "127.0.0.1:1"], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1 and time.monotonic() - began < 40
    assert result.stderr.strip().splitlines()[-1].startswith("onestep-sr: No Ray cluster answers at 127.0.0.1:1")
    with pytest.raises(UserError, match="give auto, local, HOST:PORT"):
        list(cluster.run_on_cluster("somewhere", CHOICE, plan_jobs([str(pictures)], tmp_path), Options()))


def test_what_a_lost_worker_left_is_swept(tmp_path):
    target = tmp_path / "a.png"
    for name in (".a.17.tmp.png", ".ab.17.tmp.png", "a.png"):
        (tmp_path / name).touch()
    cluster.sweep(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".ab.17.tmp.png", "a.png"]


def test_settings_travel_with_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    choice = cluster.absolute(ModelChoice("some.pth", autoencoder=Path("vae.pth")))
    assert (choice.model, choice.autoencoder) == (str(tmp_path / "some.pth"), tmp_path / "vae.pth")
    assert cluster.absolute(ModelChoice()).model == "bundled"
    assert cluster.absolute(Job(Path("a.png"), Path("b.png"))) == Job(tmp_path / "a.png", tmp_path / "b.png")
