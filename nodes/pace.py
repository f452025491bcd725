"""The speed of past runs on this machine, stored in the user's folder to estimate the time of the next run."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from functools import partial
from pathlib import Path

from ..sr_models.errors import UserError
from ..sr_models.files.whole import write_whole
from . import host


def record(model: str, work: int, seconds: float) -> None:
    """Store the seconds per latent pixel of a run with `model`; `work` is as in `Forecast`."""
    with suppress(UserError, OSError):  # an estimate must not cost the user a result
        _file().parent.mkdir(parents=True, exist_ok=True)
        write_whole(_file(), partial(_write, _read() | {_name(model): seconds / work}))


def expected_seconds(model: str, work: int) -> float | None:
    """The estimated seconds; None before the first run with that model on this device."""
    pace = _read().get(_name(model))
    return None if pace is None else pace * work


def _name(model: str) -> str:
    return f"{model} on {host.device_name()}"


def _file() -> Path:
    return host.user_folder() / "pace.json"


def _read() -> dict[str, float]:
    try:
        content = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    items = content.items() if isinstance(content, dict) else ()
    return {name: pace for name, pace in items if isinstance(pace, float) and math.isfinite(pace)}


def _write(paces: dict[str, float], path: Path) -> None:
    path.write_text(json.dumps(paces, indent=1), encoding="utf-8")
