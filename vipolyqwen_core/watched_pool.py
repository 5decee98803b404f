"""A pool of processes in which the death of one ends the work of all, whenever it comes."""

import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from multiprocessing.process import BaseProcess
from typing import Any, Final

SECONDS_TO_NOTICE: Final = 5.0
"""Time for Python's own pool to see a death, before what it waits for is taken for lost."""


class WatchedPool(ProcessPoolExecutor):
    """A pool that raises `BrokenProcessPool` where Python's own would wait for ever.

    Python looks for dead workers only between two results. A worker that is killed while it writes one, as
    where memory is short, leaves Python's pool waiting for the rest. Here the pipe of results ends as soon as
    no worker is left who could write to it.

    Raises:
        ChildProcessError: from `submit`: another process cannot be started
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._started: list[BaseProcess] = []
        super().__init__(*arguments, **named)

    def was_killed(self) -> bool:
        """Whether SIGKILL ended a process of this broken pool, as where memory is short.

        The pool is closed first: its own thread takes the processes' ends, which can be read once. Of several
        processes the pool may itself have killed those that were left.
        """
        self.shutdown()
        return any(process.exitcode == -signal.SIGKILL for process in self._started)

    def _spawn_process(self) -> None:
        try:
            super()._spawn_process()  # type: ignore[misc]
        except (OSError, EOFError) as error:  # the latter: the server that forks fell over it
            raise ChildProcessError(
                f"a process of a pool could not be started ({error}): if nothing above names another reason, "
                "it wants memory, and room for processes (ulimit -u; in a container, its limit of PIDs)"
            ) from error
        *_, started = self._processes.values()
        self._started.append(started)
        parts = started, self._processes, self._result_queue  # a pool that is closed forgets these
        threading.Thread(target=self._watch, args=parts, name="pool-watch", daemon=True).start()

    def _watch(self, process: SpawnProcess, processes: dict[int, SpawnProcess], results: Any) -> None:
        wait([process.sentinel])
        noticed = time.monotonic() + SECONDS_TO_NOTICE
        while process.pid in processes:  # one that ends with the pool is taken out
            if time.monotonic() < noticed:
                time.sleep(0.1)
                continue
            with self._shutdown_lock:  # nobody starts another one meanwhile
                self._broken = True
                for other in list(processes.values()):
                    other.kill()
                results._writer.close()
            return
