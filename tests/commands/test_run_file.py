"""`run.toml`: writing a command's options, and reading them back."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from cyclopts import App
from onestep_sr.sr_models.commands import cli
from onestep_sr.sr_models.commands.options import flat
from onestep_sr.sr_models.commands.run_file import read_run_file, run_file_text
from onestep_sr.sr_models.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RUNS = Path(__file__).parent / "run_files"


@flat
@dataclass(frozen=True, kw_only=True)
class Shared:
    rate: float = 5e-6
    config: Path | None = None
    steps: int = 7


@dataclass(frozen=True, kw_only=True)
class Work:
    data: Path = field(kw_only=False)
    shared: Shared = Shared()
    captions: bool = True
    start: Path | None = None
    name: str = "psnr"


app = App(print_error=False, exit_on_error=False, result_action="return_value")
train = App(name="train", config=read_run_file)
app.command(train)
train.command(Work)


def run(*words: object) -> Work:
    return app(["train", "work", *map(str, words)])


def test_a_run_file_repeats_the_run_from_any_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = run("photos", "--rate", "1e-06", "--no-captions", "--name", 'a "name" with é, \\ and 🙂')
    text = run_file_text(first)
    assert text.startswith("# onestep-sr train work --config run.toml\n")
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = run("--config", tmp_path / "run.toml")
    assert again.shared.config == tmp_path / "run.toml"
    same = replace(again, shared=replace(again.shared, config=None))
    assert same == replace(first, data=tmp_path / "photos")
    assert run_file_text(again) == text


def test_options_on_the_command_line_override_the_file(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('data = "photos"\nsteps = 3\nrate = 1e-3\n')
    found = run("--config", "mine.toml", "--steps", 9, "--start", "lora")
    assert found == Work(
        Path("photos"), shared=Shared(rate=1e-3, config=Path("mine.toml"), steps=9), start=Path("lora")
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps = ", "cannot be read"),
        ("stepps = 3", r"\(stepps\)"),
        ("[work]\nsteps = 3", r"\(work.steps\)"),
        (None, "cannot be read"),
    ],
    ids=["broken", "unknown option", "unknown table", "missing"],
)
def test_unreadable_files_end_in_one_sentence(text, words, tmp_path) -> None:
    if text is not None:
        (tmp_path / "run.toml").write_text(text)
    with pytest.raises(UserError, match=words):
        run("photos", "--config", tmp_path / "run.toml")


@pytest.mark.parametrize("command", ["teacher", "student", "tsd", "tad-sd"])
def test_files_of_runs_before_this_command_line_mean_the_same(command: str) -> None:
    """The files were written by the earlier command line based on typer, with values that are not the defaults."""
    file = RUNS / f"{command}.toml"
    make, bound, _ = cli.app.parse_args(["train", command, "--config", str(file)])
    assert tomllib.loads(run_file_text(make(*bound.args, **bound.kwargs))) == tomllib.loads(file.read_text())
