"""`run.toml`: what a command's options become, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import pytest
import typer
from onestep_sr.sr_models.commands.run_file import ConfigOption, run_file_text
from onestep_sr.sr_models.errors import UserError
from typer.testing import CliRunner

app = typer.Typer()
seen: list[tuple] = []


@app.command()
def other() -> None:
    """So that `work` is named."""


@app.command()
def work(
    context: typer.Context,
    data: Annotated[Path, typer.Argument()],
    config: ConfigOption = None,
    rate: Annotated[float, typer.Option()] = 5e-6,
    steps: Annotated[int, typer.Option()] = 7,
    captions: Annotated[bool, typer.Option()] = True,
    start: Annotated[Optional[Path], typer.Option()] = None,  # noqa: UP045
    name: Annotated[str, typer.Option()] = "psnr",
) -> None:
    seen.append((data, rate, steps, captions, start, name))
    Path("run.toml").write_text(run_file_text(context), encoding="utf-8")


def run(*words: object):
    return CliRunner().invoke(app, ["work", *map(str, words)])


def test_a_run_file_gives_the_run_again_from_anywhere(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--rate", "1e-06", "--no-captions", "--name", 'a "name" with é, \\ and 🙂']
    assert run("photos", *given).exit_code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run("--config", tmp_path / "run.toml").exit_code == 0
    first, again = seen[-2:]
    assert again == (tmp_path / "photos", *first[1:])
    assert (tmp_path / "elsewhere" / "run.toml").read_text() == (tmp_path / "run.toml").read_text()


def test_what_is_given_wins_over_the_file(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('data = "photos"\nsteps = 3\nrate = 1e-3\n')
    assert run("--config", "mine.toml", "--steps", 9, "--start", "lora").exit_code == 0
    assert seen[-1] == (Path("photos"), 1e-3, 9, True, Path("lora"), "psnr")


@pytest.mark.parametrize(
    ("text", "words"),
    [("steps = ", "cannot be read"), ("stepps = 3", "stepps"), (None, "cannot be read")],
    ids=["broken", "unknown option", "missing"],
)
def test_files_that_are_none_end_in_one_sentence(text, words, tmp_path) -> None:
    if text is not None:
        (tmp_path / "run.toml").write_text(text)
    error = run("photos", "--config", tmp_path / "run.toml").exception
    assert isinstance(error, UserError) and words in str(error)
