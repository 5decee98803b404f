"""Runs that end before their time."""

from vipolyqwen_core.training.stopping import StopSignal


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the run's own is called any more."""


class KilledAfter(StopSignal):
    """Ends the run after some steps, without a save."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def asked(self) -> bool:
        self.steps -= 1
        if self.steps == 0:
            raise Killed
        return False
