"""Terminals, permissions and names that the operating system refuses, in real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from onestep_sr.sr_models.commands.cli import system_sentence
from PIL import Image
from places import ROOT

COMMAND = [sys.executable, "-m", "onestep_sr"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT.parent), "OMP_NUM_THREADS": "1"}
LONG = "x" * 300


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    return tmp_path


def run(words: str, folder: Path, redirection: str = "") -> subprocess.CompletedProcess[str]:
    line = f'exec "$@" {redirection}'
    arguments = ["bash", "-c", line, "bash", *COMMAND, *words.split()]
    return subprocess.run(arguments, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="needs bash and /dev/full")
@pytest.mark.parametrize("redirection", [">&-", ">/dev/full", ">&- 2>&-"])
def test_a_terminal_that_takes_nothing_ends_no_batch(redirection: str, folder: Path) -> None:
    done = run("upscale a.png -o out --scale 2", folder, redirection)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert Image.open(folder / "out" / "a.png").size == (16, 16)


@pytest.mark.skipif(sys.platform != "linux", reason="needs bash")
def test_a_pipe_that_is_closed_is_no_error(folder: Path) -> None:
    line = 'set -o pipefail; "$@" | true'
    arguments = ["bash", "-c", line, "bash", *COMMAND, "models"]
    done = subprocess.run(arguments, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "words", [f"models {LONG}", f"upscale a.png -o {LONG}.png", f"upscale a.png -o b --model {LONG}"]
)
def test_a_name_that_is_too_long_is_one_sentence(words: str, folder: Path) -> None:
    done = run(words, folder)
    [line] = [line for line in done.stderr.splitlines() if line]
    assert done.returncode == 1 and line.startswith("onestep-sr: x") and "File name too long" in line


def test_what_the_system_refuses_is_told_with_its_path() -> None:
    refused = PermissionError(13, "Permission denied", "a/b")
    assert system_sentence(refused) == "a/b cannot be used (Permission denied): check the path and its permissions."
    assert "No space left" in system_sentence(OSError(28, "No space left on device"))
