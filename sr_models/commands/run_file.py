"""A command's options as a TOML file: every training run leaves one, and `--config` takes it back."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..errors import UserError

RUN_FILE = "run.toml"


def run_file_text(context: typer.Context) -> str:
    """The running command's options, defaults included, as TOML."""
    names = [option.name for option in context.command.params if option.name not in (None, "config")]
    values = {name: context.params[name] for name in names if context.params.get(name) is not None}
    lines = [f"# onestep-sr train {context.info_name} --config {RUN_FILE}"]
    return "\n".join([*lines, *(f"{name} = {_toml(value)}" for name, value in values.items())]) + "\n"


def _toml(value: Any) -> str:
    """Texts, numbers and truth values, which TOML writes as JSON does; paths from the root, to hold anywhere."""
    return json.dumps(str(value.absolute()) if isinstance(value, Path) else value, ensure_ascii=False)


def _read_run_file(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        context.default_map = {**(context.default_map or {}), **_parse(path, {p.name for p in context.command.params})}
    return path


def _parse(path: Path, known: set[str | None]) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a run's TOML file ({error}): check the name.") from error
    strangers = sorted(values.keys() - known)
    if strangers:
        raise UserError(f"{path} has options that this command lacks ({', '.join(strangers)}): is it another one's?")
    return values


ConfigOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--config", is_eager=True, callback=_read_run_file, help="Options from a run.toml; others win."),
]
