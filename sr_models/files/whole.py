"""Write files atomically."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..errors import UserError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call write(temporary path), then rename it to `path`, which is never a partial file.

    Raises UserError if the file cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise UserError(f"{path} cannot be written ({reason}): choose another folder or free some space.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
