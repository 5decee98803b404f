"""One training at a time in the folder of a run.

A training whose starter was killed finishes its step and saves, for minutes with a large model, while the run
is repeated already: the two would share the memory of the GPU, and clear away each other's checkpoint.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vipolyqwen_core.file_lock import file_lock
from vipolyqwen_core.process_ties import SECONDS_TO_SAVE
from vipolyqwen_core.training.stopping import StoppedEarly, StopSignal

LOCK_FILE = "lock"
"""In the folder of a run; holds the process number of rank 0."""

logger = logging.getLogger(__name__)


@contextmanager
def only_training(
    output: Path, stop: StopSignal, patience_seconds: float = SECONDS_TO_SAVE
) -> Iterator[None]:
    """Wait until no other training is at the folder. For rank 0: the others wait for it when they meet.

    Raises:
        StoppedEarly: a signal came while it waited
        ValueError: the other one goes on; names its process. Or the folder cannot be written to
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = (output / LOCK_FILE).open("a+", encoding="utf-8")
    except OSError as error:
        raise ValueError(str(error)) from error
    with lock as file:
        started, said = time.monotonic(), False
        while (holder := file_lock(file)) is not None:
            if stop.asked():
                raise StoppedEarly.before_the_first_step()
            if time.monotonic() - started >= patience_seconds:
                raise ValueError(f"process {holder} trains in {output}: wait for it, or stop it")
            if not said:
                logger.info("process %s is still at %s: this one waits until it has saved", holder, output)
                said = True
            time.sleep(1)
        yield
