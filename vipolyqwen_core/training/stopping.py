"""SIGTERM, SIGINT: the step in progress is finished, a checkpoint saved, and the process leaves.

SIGINT is what Dagster sends when somebody cancels a run, and a terminal at Ctrl-C. It may come twice, from
the terminal and from the launcher: a second one means nothing more.
"""

import signal
from types import FrameType
from typing import Final

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
"""What tells a run to stop."""


class StoppedEarly(Exception):
    """The run was asked to stop; a checkpoint is saved, and the same command resumes it."""


class StopSignal:
    """Remembers that a signal came, until the step is done."""

    def __init__(self) -> None:
        self._asked = False

    def listen(self) -> None:
        """Take the signals from now on. Only the main thread may call this."""
        for number in SIGNALS:
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def asked(self) -> bool:
        """Whether this process was asked to stop; others of the run may not have been."""
        return self._asked
