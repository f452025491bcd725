"""Limits that only end a test that hangs: no test measures how fast the machine is."""

HANGING_SECONDS = 900
PAGE_SECONDS = 300  # for what a page shows
