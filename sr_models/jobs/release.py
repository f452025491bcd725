"""The name and version that results carry."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

SOFTWARE = "One-Step SR"


def release() -> str:
    """The installed version, or `unknown` for a checkout that is not installed."""
    try:
        return version("onestep-sr")
    except PackageNotFoundError:
        return "unknown"
