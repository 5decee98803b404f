"""No process is left behind: what was launched ends with its launcher."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import wait

from vipolyqwen_core.first_process import EXIT_CODE

PR_SET_PDEATHSIG = 1
SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_TO_SAVE = 300.0
"""Time for the step in progress and its checkpoint, before a process that was told to stop is ended: a step
of the 2B recipe takes half a minute on 4 GPUs, and its checkpoint has 26 GB."""


def guarded(*command: str) -> list[str]:
    """The line of a command that does not outlive this process, which has to start it itself.

    It has a process group of its own: a terminal's Ctrl-C comes to it from this process, once, or not at all.
    """
    return [sys.executable, "-m", "vipolyqwen_core.guarded", str(os.getpid()), *command]


def end_with_parent() -> None:
    """Have this process ended, by SIGTERM, when its parent dies. The wish survives an exec.

    Linux does it; elsewhere a process of its own watches the parent. A SIGTERM that is ignored is so from
    whoever started all of this, and would void the wish.

    Raises:
        OSError: Linux refuses
    """
    if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform != "linux":
        _watch_aside(os.getppid(), os.getpid())
        return
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl: {os.strerror(number)}")


def _watch_aside(parent: int, watched: int) -> None:
    """In a process of its own, which ends with the one that is watched: end that when its parent is gone."""
    if os.fork():
        return
    os.setpgid(0, 0)  # a terminal's Ctrl-C is not for it
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):  # who reads what the command prints shall see its end
        os.dup2(nowhere, stream)
    while os.getppid() == watched:
        try:
            os.kill(parent, 0)
        except ProcessLookupError:
            os.kill(watched, signal.SIGTERM)
            break
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(0)


def leave_with_parent() -> None:
    """Make sure that this process does not outlive its parent: first by SIGTERM, so that it can save.

    A watching thread, and not only a signal: Python handles signals between two instructions of the main
    thread, which may hang in a collective whose partner is gone.
    """
    threading.Thread(target=_watch, args=(os.getppid(),), name="parent-watch", daemon=True).start()


def end_with_caller() -> None:
    """In a worker of a pool: wait for the death of the process that made the pool, and leave at once.

    The caller is not always the parent by number: that may be a server that forks workers, and lives as long
    as they do.
    """
    caller = multiprocessing.parent_process()
    assert caller is not None
    threading.Thread(target=_leave_after, args=(caller.sentinel,), name="caller-watch", daemon=True).start()


def _leave_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)  # it was killed, and nothing will ever come through the queues


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_SAVE)
    os._exit(EXIT_CODE)
