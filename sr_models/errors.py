"""Failures that a person can act on."""


class UserError(Exception):
    """Its message is one sentence for the user: what was wrong, with which value, and what to do.

    Front ends (command line, nodes) show it as it is, without a traceback.
    """
