"""A lock of a file: one process at a time, whichever command it belongs to."""

import fcntl
import logging
import os
from typing import TextIO

logger = logging.getLogger(__name__)


def file_lock(file: TextIO) -> str | None:
    """Lock a file that is open for appending, and write this process's number there.

    The system lets go of the lock when the file is closed or the process ends, however that comes. On a file
    system that knows no locks there is a warning, and none is held.

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
