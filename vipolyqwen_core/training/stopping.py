"""SIGTERM, SIGINT: the step in progress is finished, a checkpoint saved, and the process leaves.

SIGINT is what Dagster sends when somebody cancels a run, and a terminal at Ctrl-C. It may come twice, from
the terminal and from the launcher: a second one means nothing more.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
"""What tells a run to stop."""


class StoppedEarly(Exception):
    """The run was asked to stop; a checkpoint is saved, and the same command resumes it."""

    @classmethod
    def before_the_first_step(cls) -> "StoppedEarly":
        """There was nothing to save yet."""
        return cls("stopped before the first step; nothing had to be saved")


class StopSignal:
    """Remembers that a signal came, until the step is done."""

    def __init__(self) -> None:
        self._asked = False
        self._listens = False

    def listen(self) -> None:
        """Take the signals from now on. Only the main thread may call this."""
        self._listens = True
        for number in SIGNALS:
            signal.signal(number, self._ask)

    @contextmanager
    def obeyed_at_once(self) -> Iterator[None]:
        """Within the block a signal ends the process, which has nothing to save there.

        A rank that waits for another in a library's code could not look whether one came.

        Raises:
            StoppedEarly: one came before
        """
        if self._asked:
            raise StoppedEarly.before_the_first_step()
        if not self._listens:
            yield
            return
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        try:
            yield
        finally:
            self.listen()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def asked(self) -> bool:
        """Whether this process was asked to stop; others of the run may not have been."""
        return self._asked
