"""Runs that end before their time."""

from vipolyqwen_core.training.stopping import StopSignal


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the run's own is called any more."""


class KilledAfter(StopSignal):
    """Ends the run after some steps, without a save."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.looks = steps + 1  # it is looked at before the first step, and after each

    def asked(self) -> bool:
        self.looks -= 1
        if self.looks == 0:
            raise Killed
        return False
