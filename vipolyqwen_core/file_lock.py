"""Locks of files: one process at a time, whichever command it belongs to, or all who write to a log.

The system lets go of a lock when the file is closed everywhere or its processes end, however that comes.
"""

import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import TextIO

logger = logging.getLogger(__name__)


def file_lock(file: TextIO) -> str | None:
    """Lock a file that is open for appending, and write this process's number there.

    On a file system that knows no locks there is a warning, and none is held.

    Returns:
        None: it is locked; else the number of the process that has it
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        return file.read().strip()
    except OSError as error:
        logger.warning("%s cannot be locked (%s): start no second command on it", file.name, error)
    file.truncate(0)
    print(os.getpid(), file=file, flush=True)
    return None


def share_lock(descriptor: int) -> None:
    """Hold a lock together with others, and with children that inherit the file, where there are locks."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def is_locked(path: Path) -> bool:
    """Whether somebody holds a lock of a file; never where it is absent, or where there are no locks."""
    if not path.is_file():
        return False
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:  # read-only, or another user's: NFS needs more, disks of this machine do not
        descriptor = os.open(path, os.O_RDONLY)
    with open(descriptor, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False
