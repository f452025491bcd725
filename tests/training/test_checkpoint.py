"""Checkpoints: what they hold, that no kill loses one, and that reading one executes nothing."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.training.checkpoint import (
    CHECKPOINT_FILE,
    Best,
    Learned,
    remove_leftovers,
    resume,
    save_checkpoint,
)
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

SETTINGS = {"seed": 0, "crop": (64, 64)}


def learned(steps: int = 0, width: int = 8) -> Learned:
    """After some steps of training; its first layer is frozen."""
    torch.manual_seed(width)
    module = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))
    module[0].requires_grad_(False)
    average = AveragedModel(module[1])
    optimizer = torch.optim.AdamW(module[1].parameters(), 0.01)
    for step in range(steps):
        optimizer.zero_grad()
        module(torch.full((1, width), 1.0 + step)).pow(2).sum().backward()
        optimizer.step()
        average.update_parameters(module[1])
    return Learned(module, optimizer, average)


def test_everything_comes_back_and_training_goes_on_as_if_unbroken(tmp_path: Path) -> None:
    saved = learned(3)
    save_checkpoint(tmp_path, saved, SETTINGS, 3, Best(2, 0.5))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    assert not any("weights/0." in name for name in load_file(tmp_path / "checkpoint.safetensors")), "frozen"
    found = learned(0)
    assert resume(tmp_path, found, SETTINGS) == (3, Best(2, 0.5))
    expected = saved.tensors()
    assert found.tensors().keys() == expected.keys() and any("exp_avg_sq" in name for name in expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.tensors().items())


def test_without_a_checkpoint_training_starts_at_the_beginning(tmp_path: Path) -> None:
    assert resume(tmp_path, learned(), SETTINGS) == (0, None)


def written_at(folder: Path) -> int:
    path = folder / CHECKPOINT_FILE
    return path.stat().st_mtime_ns if path.exists() else 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the child that is killed is a fork")
def test_no_kill_loses_a_checkpoint(tmp_path: Path) -> None:
    """A child saves one checkpoint after another until it is killed, 20 times; the next goes on where it was."""
    state, last, moments = learned(1, width=200), 0, random.Random(0)
    for _ in range(20):
        before = written_at(tmp_path)
        child = os.fork()
        if not child:
            try:
                for step in range(last + 1, 10**9):
                    save_checkpoint(tmp_path, state, SETTINGS, step, None)
            finally:
                os._exit(1)
        while written_at(tmp_path) == before:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "the child ended by itself"
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        step, _ = resume(tmp_path, learned(0, width=200), SETTINGS)
        assert step > last
        last = step
        remove_leftovers(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} <= {"checkpoint.safetensors"}


class Attack:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_checkpoint_with_code_is_refused_and_does_not_run(tmp_path: Path, form: str) -> None:
    marker, path = tmp_path / "it ran", tmp_path / "checkpoint.safetensors"
    state = {"state": {}, "param_groups": Attack(marker)}
    path.write_bytes(pickle.dumps(state)) if form == "pickle" else torch.save(state, path)
    with pytest.raises(UserError, match=r"checkpoint\.safetensors is broken \(.*\): remove it to start"):
        resume(tmp_path, learned(), SETTINGS)
    assert not marker.exists()
    path = path.rename(tmp_path / "optimizer.bin")
    torch.load(path, weights_only=False) if form == "torch" else pickle.loads(path.read_bytes())
    assert marker.exists()  # the attack is a real one


@pytest.mark.parametrize("name", ["checkpoint", "checkpoint.old"])
def test_a_checkpoint_of_an_earlier_version_is_refused_unread(tmp_path: Path, name: str) -> None:
    folder, marker = tmp_path / name, tmp_path / "it ran"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"step": 3, "best": None, "settings": SETTINGS}))
    for file in ("optimizer.bin", "custom_checkpoint_0.pkl", "random_states_0.pkl"):
        torch.save(Attack(marker), folder / file)
    with pytest.raises(UserError, match="was saved by an earlier version in files that could run code: choose another"):
        resume(tmp_path, learned(), SETTINGS)
    assert not marker.exists()


def metadata(**changes: object) -> dict[str, str]:
    return {"onestep_sr_run": json.dumps({"settings": SETTINGS, "step": 3, "best": None, "scaler": None} | changes)}


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ({}, "is broken"),
        ({"onestep_sr_run": "{"}, "is broken"),
        ({"onestep_sr_run": "[" * 100_000}, "is broken"),
        ({"onestep_sr_run": "[1]"}, "is broken"),
        (metadata(settings={"seed": 1}), "was saved with other settings: use the same ones"),
        (metadata(step="many"), "does not belong to this run"),
        (metadata(best={"score": 1}), "does not belong to this run"),
    ],
    ids=["none", "cut", "deep", "list", "settings", "step", "best"],
)
def test_descriptions_that_are_wrong_end_in_a_sentence(tmp_path: Path, description: dict, words: str) -> None:
    save_file(learned(1).tensors(), tmp_path / "checkpoint.safetensors", metadata=description)
    with pytest.raises(UserError, match=words) as caught:
        resume(tmp_path, learned(), SETTINGS)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize("change", ["other widths", "weights missing", "strangers", "optimizer of more"])
def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path, change: str) -> None:
    tensors = learned(1, width=4 if change == "other widths" else 8).tensors()
    if change == "weights missing":
        del tensors["weights/1.weight"]
    elif change == "strangers":
        tensors["weights/7.weight"] = torch.zeros(1)
    elif change == "optimizer of more":
        tensors["optimizer/x/step"] = torch.zeros(1)
    save_file(tensors, tmp_path / "checkpoint.safetensors", metadata=metadata())
    with pytest.raises(UserError, match="does not belong to this run"):
        resume(tmp_path, learned(), SETTINGS)
