"""Failures that a person can act on."""

from textwrap import shorten

REASON_LENGTH = 200


class UserError(Exception):
    """Its message is one sentence for the user: what was wrong, with which value, and what to do.

    Front ends (command line, nodes) show it as it is, without a traceback.
    """


def reason_of(error: Exception) -> str:
    """What a library's error says, for a sentence: on one line, and cut between words."""
    return shorten(str(error), REASON_LENGTH, placeholder=" ...")
