"""Limits that only end a test that hangs: no test measures how fast the machine is."""

HANGING_SECONDS = 900
