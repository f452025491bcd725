"""A file that appears whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..errors import UserError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """write(a temporary path), then the rename: the file appears whole or not at all."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise UserError(f"{path} cannot be written ({reason}): choose another place or make room.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
