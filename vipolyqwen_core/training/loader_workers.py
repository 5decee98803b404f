"""Processes that load: what they do about signals, and how the training process learns that one has failed.

They hand over their chunks in shared memory, tensor by tensor.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from multiprocessing import resource_tracker
from multiprocessing.queues import Queue
from types import FrameType
from typing import Any, TypeVar

from torch._utils import ExceptionWrapper

from vipolyqwen_core.first_process import EXIT_CODE
from vipolyqwen_core.process_ties import SECONDS_TO_SAVE
from vipolyqwen_core.training.stopping import SIGNALS

Chunk = TypeVar("Chunk")


def begin_worker(_: int) -> None:
    """What a worker does first.

    It goes on where a signal reaches all processes of a run: the training process decides. Ctrl-C does so in
    a terminal, SIGTERM from many a cluster or service manager. The step in progress needs its chunks before
    its checkpoint can be saved.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_later)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # see `all_started`
    Queue._on_queue_feeder_error = _tell_of_lost_chunk  # type: ignore[attr-defined]


def _leave_later(number: int, frame: FrameType | None) -> None:
    leaving = threading.Timer(SECONDS_TO_SAVE, os._exit, (EXIT_CODE,))
    leaving.daemon = True
    leaving.start()


def _tell_of_lost_chunk(queue: "Queue[Any]", error: Exception, sent: Any) -> None:
    """Let the training process raise why a chunk could not be handed over.

    It happens in a thread of multiprocessing, which would print it, and nobody would stop waiting.
    """
    if isinstance(error, BrokenPipeError):
        return  # nobody is there to be told
    number, _ = sent
    told = OSError(
        f"a loader process could not hand over a chunk ({error}). It wants room in /dev/shm (in a container: "
        "--shm-size), a folder of temporary files, TMPDIR, of at most 75 bytes, and open files (ulimit -n); "
        "with training.loader_workers 0 it wants none of these"
    )
    queue.put((number, ExceptionWrapper((OSError, told, error.__traceback__), "in a loader process")))


@contextmanager
def all_started() -> Iterator[None]:
    """Where not all workers can be started in the block, end those that were.

    DataLoader forgets them, and this process would wait for them before it ends: see `received`.

    Signals to stop are held back in the block: a worker inherits that, and needs seconds to come to
    `begin_worker`, until when such a signal would end it, and the run by an error.

    Raises:
        OSError: says what workers want
    """
    others = multiprocessing.active_children()
    resource_tracker.ensure_running()  # it lets the signals through where it starts
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    except (OSError, RuntimeError) as error:
        for process in multiprocessing.active_children():
            if process not in others:
                process.kill()
                process.join()
        raise OSError(
            f"the loader processes could not be started ({error}). They want memory, and room for processes "
            "and threads (ulimit -u; in a container, its limit of PIDs); training.loader_workers 0 needs none"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def received(chunks: Any, are_pinned: bool) -> Generator[Chunk]:
    """The chunks of a DataLoader with workers, in memory of this process; these leave when it ends.

    As they come, each tensor that is not pinned keeps a file open, of which a process may have 1,024 on many
    a machine: less than the tensors of the chunks that a step holds.

    DataLoader would let workers leave when the last reference to it is gone, but an error's traceback has one
    to the end of the process, which then waits for workers whom nobody has told: its SIGTERM is no reason to
    leave. One that is sending a chunk when it is told may die of that, by SIGABRT in torch's code.
    """
    try:
        for chunk in chunks:
            yield chunk if are_pinned else deepcopy(chunk)
    finally:
        with suppress(RuntimeError):  # of a worker that died while it left: nobody waits for its chunk
            chunks._shutdown_workers()
        for worker in chunks._workers:
            worker.kill()  # one that hangs has not heard of it, and stays minutes after a SIGTERM


@contextmanager
def told_of_workers_later() -> Iterator[None]:
    """Hold back the error of a worker that dies in the block until its end.

    DataLoader raises it wherever the main thread is. Within an exchange of several steps, such as the save of
    a checkpoint, a rank would leave one step for another than the others wait in, and none would go on.
    """
    deaths: list[tuple[int, FrameType | None]] = []
    handler = signal.signal(signal.SIGCHLD, lambda *death: deaths.append(death))
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)
    if deaths and callable(handler):
        handler(*deaths[-1])
