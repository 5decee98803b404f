"""Files and folders that appear whole or not at all; needs the standard library alone."""

import ctypes
import errno
import glob
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What only writing meets."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of Linux's renameat2: paths relative to the current folder, and both change places."""


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A new path beside `path`, file or folder; moved over it when the block ends well, else removed.

    A reader sees the old content or the new, never a half, also after a power cut. A killed process leaves
    only a hidden `.NAME.*.partial`, which the next writer of the same path removes. Of several that write at
    once the last one stays.

    Raises:
        OSError: there is no room for it; names it, which the system does only where a file is opened
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        if not _is_being_written(left_over):
            _remove(left_over)
    aside = _place_beside(path)
    try:
        yield aside
        to_disk(aside)
        if not path.is_dir():
            os.replace(aside, path)
        elif not _exchange(aside, path):  # os.replace does not move over a folder that is not empty
            old = _place_beside(path)
            os.replace(path, old)
            os.replace(aside, path)
            _remove(old)
        _entries_to_disk(path.parent)
    except OSError as error:
        if error.errno not in NO_ROOM or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        _remove(aside)


def to_disk(path: Path) -> None:
    """Wait until a file or a whole folder has reached the disk: a rename may get there first."""
    if path.is_symlink():
        return
    if path.is_dir():
        for inside in path.iterdir():
            to_disk(inside)
        _entries_to_disk(path)
    else:
        _synced(path)


def _entries_to_disk(folder: Path) -> None:
    """Wait until the names in a folder have reached the disk, where its file system can be asked to."""
    try:
        _synced(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def _synced(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(opened)


def _place_beside(path: Path) -> Path:
    """A name that nobody else has, and that tells who writes there: `.NAME.PROCESS-START.RANDOM.partial`."""
    pid = os.getpid()
    return path.parent / f".{path.name}.{pid}-{_started(pid)}.{uuid.uuid4().hex[:8]}.partial"


def _is_being_written(aside: Path) -> bool:
    """Whether the process that its name tells lives on this machine."""
    match = re.search(r"\.(\d+)-(\d+)\.\w+\.partial$", aside.name)
    return match is not None and int(match[2]) == _started(int(match[1])) != 0


def _started(pid: int) -> int:
    """When a living process started, in ticks from the boot, 1 where no Linux tells it; 0: there is none."""
    if sys.platform != "linux":
        return int(_lives(pid))
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if state in "ZX" else int(numbers[18])


def _lives(pid: int) -> bool:
    """Whether a process lives, or another one that has its number by now. Windows would end it, if asked."""
    if os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places at once; False where system or file system cannot.

    Two renames would leave a moment without the folder: for readers, and for good after a kill.
    """
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    arguments = (AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)
    return rename is not None and rename(*arguments) == 0


def _remove(path: Path) -> None:
    """Remove a file or a folder. It may be going already: who is left over is removed by all that come."""
    if path.is_dir():
        with suppress(FileNotFoundError):
            shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
