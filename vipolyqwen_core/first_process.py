"""Lets SIGTERM end the first process of a container: there Linux ignores a signal that has no handler.

`docker stop` would wait its ten seconds and then kill. Training and Dagster have handlers of their own while
they are at work.
"""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

EXIT_CODE = 128 + signal.SIGTERM
"""Exit code of a process that left because it was told to."""


def heed_sigterm() -> None:
    """Let SIGTERM end this process where it is the first of a container, as it ends any other."""
    if os.getpid() == 1 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(EXIT_CODE)
