"""Standard streams of a process whose starter closed them, or whose terminal is closed while it works.

A command that was sent to the background and disowned outlives the connection it was typed in, and a training
saves its last step after the command that launched it is gone. Linux answers both with EIO when they print:
what they still have to say is lost, and is no error.
"""

import errno
import os
import sys
from io import BufferedWriter, FileIO, TextIOWrapper, UnsupportedOperation
from stat import S_ISCHR
from typing import Any, TextIO


class _Terminal(FileIO):
    """The terminal of a stream, which is kept open."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream.fileno(), "w", closefd=False)
        self.stream = stream

    def write(self, data: Any, /) -> int:
        """As that of a file; a terminal that was closed takes everything, to nowhere."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return memoryview(data).nbytes


def outliving(stream: TextIO) -> TextIO:
    """The same stream, without errors after its terminal was closed."""
    if not _is_terminal(stream):
        return stream
    terminal = BufferedWriter(_Terminal(stream))
    return TextIOWrapper(terminal, encoding=stream.encoding, errors=stream.errors, line_buffering=True)


def _is_terminal(stream: TextIO) -> bool:
    """Whether it is a terminal, or was: one that was closed says of itself that it is none."""
    try:
        descriptor = stream.fileno()
    except UnsupportedOperation:  # in memory
        return False
    return S_ISCHR(os.fstat(descriptor).st_mode)


def outlive_terminal() -> None:
    """Let this process go on where the terminal that it writes to is closed."""
    if sys.stdout is not None:
        sys.stdout = outliving(sys.stdout)
    if sys.stderr is not None:
        sys.stderr = outliving(sys.stderr)


def open_closed_streams() -> None:
    """Give a process that was started without a standard stream, as by a daemon, an empty one.

    Else the next file that is opened gets its number: what a library or a child process prints would stand in
    a table or a database.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, number)
            if nowhere != number:
                os.close(nowhere)
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w", encoding="utf-8"))
