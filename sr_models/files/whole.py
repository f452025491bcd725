"""Write files atomically."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from ..errors import UserError

LONGEST_NAME = 255  # bytes, on every common file system
Ready = Callable[[Path], AbstractContextManager[object]]
ROOM = 40  # bytes that are kept for what is put around a name


def write_whole(path: Path, write: Callable[[Path], object], ready: Ready = nullcontext) -> None:
    """Call write(temporary path), then rename it to `path`, which is never a partial file.

    The file's mode follows the umask, also where the writer's own files are private, as those of safetensors are. The
    rename happens within the context that `ready` makes of the finished temporary file; it changes neither its size nor
    its time. Raises UserError if the file cannot be written.
    """
    temporary = path.with_name(f".{shortened(path.stem)}.{os.getpid()}.tmp{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)
        with ready(temporary):
            os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def unwritable(path: Path, error: OSError) -> UserError:
    """The sentence for a file that cannot be written."""
    reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
    return UserError(f"{path} cannot be written ({reason}): choose another folder or free some space.")


def shortened(name: str, room: int = ROOM) -> str:
    """The name, or if it is too long to put `room` more bytes around it, its beginning and a hash of the rest."""
    content = os.fsencode(name)
    if len(content) <= LONGEST_NAME - room:
        return name
    digest = hashlib.sha256(content).hexdigest()[:12]
    beginning = content[: LONGEST_NAME - room - len(digest) - 1]
    return f"{beginning.decode('utf-8', 'ignore')}~{digest}"


def remove_temporaries(path: Path, of_dead_only: bool = True) -> None:
    """Remove what processes that were killed have left of a file: temporaries carry the process's number.

    of_dead_only: keep those of processes that run on this machine.
    """
    name = re.compile(rf"\.{re.escape(shortened(path.stem))}\.(\d+)\.tmp{re.escape(path.suffix)}")
    with suppress(OSError):
        for entry in os.listdir(path.parent):
            found = name.fullmatch(entry)
            if found and not (of_dead_only and _is_running(int(found[1]))):
                with suppress(OSError):
                    path.with_name(entry).unlink()


def _is_running(process: int) -> bool:
    """Elsewhere than on POSIX it cannot be asked without harm, so every process counts as running."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
