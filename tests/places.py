"""Paths of the checkout and of test files, for tests in any folder."""

from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
PHOTOS = TESTS / "photos"
HOST_SCRIPTS = TESTS / "host_scripts"
