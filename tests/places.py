"""Paths of the checkout and of test files, for tests in any folder."""

from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
PHOTOS = TESTS / "photos"
HOST_SCRIPTS = TESTS / "host_scripts"


def template(name: str) -> Path:
    """A template by its name without the number that orders the list, such as quick-start."""
    (path,) = (ROOT / "workflows").glob(f"onestep-sr-??-{name}.json")
    return path
