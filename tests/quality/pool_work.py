"""What processes of a pool do in tests, most of it harmful.

Apart from the tests themselves: a process that is given one of these imports this module, and should not take
seconds for it.
"""

import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import psutil


class Deadly(type(Path())):  # type: ignore[misc]
    """A file that ends the process which reads it, as a defect of a decoder would."""

    number = signal.SIGSEGV

    def read_bytes(self) -> bytes:
        os.kill(os.getpid(), self.number)
        raise AssertionError


class TooLarge(Deadly):
    """A file for which memory is short: the system kills the process."""

    number = signal.SIGKILL


class Starved(type(Path())):  # type: ignore[misc]
    """A file that takes the room for more from the process which reads it."""

    def read_bytes(self) -> bytes:
        data = super().read_bytes()
        in_use = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**24, resource.RLIM_INFINITY))
        return data


class Replaced(type(Path())):  # type: ignore[misc]
    """A file in whose place the caller finds the one beside it, "newer.png"."""

    def read_bytes(self) -> bytes:
        return super().read_bytes() if multiprocessing.parent_process() else newer_than(self).read_bytes()


class Gone(type(Path())):  # type: ignore[misc]
    """A file that is gone when the caller reads it."""

    def read_bytes(self) -> bytes:
        if multiprocessing.parent_process():
            return super().read_bytes()
        raise FileNotFoundError(2, "No such file or directory", str(self))


def newer_than(path: Path) -> Path:
    """The file that takes the place of a `Replaced` one."""
    return Path(path.parent, "newer.png")


def meet(folder: Path) -> None:
    """Wait for the other worker: who comes here has started."""
    (folder / str(os.getpid())).touch()
    while len(list(folder.iterdir())) < 2:
        time.sleep(0.01)


def use_the_pool(picture: bytes) -> None:
    """Load a picture as the first work of a process."""
    from quality.picture_pool import PicturePool

    pool = PicturePool(10**8, num_workers=1)
    assert next(pool.load([picture])).image is not None
    pool.close()
