"""Sentences for what can fail in a download."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError
from .download_progress import Heard

AGAIN = "try again"


@contextmanager
def in_sentences(address: str, advice: str, target: Path, heard: Heard) -> Iterator[None]:
    """UserError for whatever the libraries raise. Their own texts are not shown: they may hold a token or a signed
    address."""
    try:
        yield
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(f"Downloading needs a package: pip install {error.name}.") from error
    except Exception as error:
        raise UserError(_sentence(error, address, advice, target, time.monotonic() - heard.last)) from None


def _sentence(error: BaseException, address: str, advice: str, target: Path, silence: float) -> str:
    causes = list(_causes(error))
    answers = [answer for cause in causes if (answer := getattr(cause, "response", None)) is not None]
    if answers:
        return f"{address} {_of_status(answers[0].status_code, advice)}."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{target} cannot be written (the disk is full): make room, or choose another folder."
    if isinstance(error, OSError) and error.filename is not None:  # the network's errors name no file
        return f"{target} cannot be written ({error.strerror}): choose another folder."
    reason = _reason(" ".join(type(cause).__name__ for cause in causes), silence)
    return f"{address} cannot be read ({reason}): check the connection, and {AGAIN}."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _of_status(status: int, advice: str) -> str:
    if status in (401, 403):
        return f"does not let you in ({status}): {advice}"
    if status in (404, 410):
        return f"does not exist ({status}): check for a newer version, or download the file by hand"
    return f"answered {status}: try again later"


def _reason(names: str, silence: float) -> str:
    """By the names of the exceptions of a failure, and the seconds since something came."""
    reasons = {
        "FileMetadata": "it does not answer as Hugging Face does, so check HF_ENDPOINT",
        "Timeout": f"no answer for {silence:.0f} seconds",
        "SSL": "its certificate is not valid",
        "ConnectError": "no connection",
        "NewConnection": "no connection",
        "NameResolution": "no connection",
        "Proxy": "the proxy refuses it",
    }
    return next((reason for part, reason in reasons.items() if part in names), "the connection ended early")
