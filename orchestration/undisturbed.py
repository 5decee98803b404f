"""A terminal for a person alone: what libraries and child processes print goes to a file meanwhile."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter, FileIO, TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from rich.console import Console

from vipolyqwen_core.file_lock import is_locked, share_lock

KEPT_LOGS = 9
"""Of earlier commands: `factory.log.1` is that of the last one."""


def begin_anew(log: Path) -> None:
    """Move a log aside, to be followed by another; the oldest goes."""
    log.parent.mkdir(parents=True, exist_ok=True)
    RotatingFileHandler(log, backupCount=KEPT_LOGS, delay=True).doRollover()


@contextmanager
def undisturbed(log: Path) -> Iterator[Console]:
    """A console on the real standard output, while file descriptors 1 and 2 write to `log`, begun anew.

    Where another command still writes there, this one adds to its log: a schedule may type the command every
    hour, to be refused, while a training of days has its only log there.

    Dagster mirrors whatever a step prints, and training runs in processes of its own: redirecting
    `sys.stdout` would catch neither. What the console prints goes to `log` too once the standard output takes
    no more: the work of hours does not end with its terminal.
    """
    if not is_locked(log):
        begin_anew(log)
    _flush()
    saved_out, saved_err = os.dup(1), os.dup(2)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    share_lock(file)
    raw = _LastingOutput(os.dup(saved_out), file, log, complaints=saved_err)
    with TextIOWrapper(BufferedWriter(raw), encoding="utf-8", line_buffering=True) as terminal:
        os.dup2(file, 1)
        os.dup2(file, 2)
        try:
            yield Console(file=terminal)
        finally:
            try:
                _flush()
            except OSError:  # the log lies on a full disk: what it does not take is not for the terminal
                with open(os.devnull, "wb") as nowhere:
                    os.dup2(nowhere.fileno(), 1)
                    os.dup2(nowhere.fileno(), 2)
                _flush()
            os.dup2(saved_out, 1)
            os.dup2(saved_err, 2)
            for descriptor in (saved_out, saved_err, file):
                os.close(descriptor)


class _LastingOutput(FileIO):
    """A standard output that goes on as the log once its reader, its terminal or its disk takes no more."""

    def __init__(self, descriptor: int, log: int, path: Path, complaints: int) -> None:
        super().__init__(descriptor, "w")
        self.log, self.path, self.complaints = log, path, complaints

    def write(self, data: Any, /) -> int:
        """Write what fits, to the one or to the other."""
        try:
            return super().write(data)
        except OSError as error:
            os.dup2(self.log, self.fileno(), inheritable=False)
            told = f"The output cannot be written ({error.strerror}): the rest of it is in {self.path}\n"
            with suppress(OSError):
                os.write(self.complaints, told.encode())
            return super().write(data)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
