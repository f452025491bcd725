"""A command's options as a TOML file. Every training run writes one, and `--config` reads it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from cyclopts import App, ArgumentCollection, UnknownOptionError, default_name_transform
from cyclopts.config import Dict

from ..errors import UserError

RUN_FILE = "run.toml"
CONFIG = "config"  # the option for the file itself, which is not written to it


def run_file_text(command: Any) -> str:
    """The options of a command, defaults included, as TOML. `command` is a dataclass; groups in it are flattened."""
    name = default_name_transform(type(command).__name__)
    lines = [f"{option} = {_toml(value)}" for option, value in _options(command)]
    return "\n".join([f"# onestep-sr train {name} --config {RUN_FILE}", *lines]) + "\n"


def _options(group: Any) -> Iterator[tuple[str, Any]]:
    for field in fields(group):
        value = getattr(group, field.name)
        if is_dataclass(value):
            yield from _options(value)
        elif value is not None and field.name != CONFIG:
            yield field.name, value


def _toml(value: Any) -> str:
    """A string, number or boolean as TOML, which is the same as in JSON. Paths become absolute."""
    return json.dumps(str(value.absolute()) if isinstance(value, Path) else value, ensure_ascii=False)


def read_run_file(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Read options that are not on the command line from the file given with `--config`, if there is one.

    This is a callable for `cyclopts.App.config`. Raises UserError if the file cannot be read, or if it has options that
    the command does not have.
    """
    config = arguments.get(f"--{CONFIG}", None)
    if config is None or not config.tokens:
        return
    path = Path(config.tokens[-1].value)
    try:
        Dict(_read(path), source=str(path), use_commands_as_keys=False)(app, commands, arguments)
    except UnknownOptionError as error:
        name = (error.token.keyword or "").strip("[]").replace("][", ".")
        raise UserError(
            f"{path} has an option that this command does not have ({name}): use it with the command that wrote it."
        ) from error


def _read(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as TOML ({error}): check the file name.") from error
