"""Time and memory of a function that runs in a process of its own, with all processes that it starts."""

import multiprocessing
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import psutil

POLL_SECONDS = 0.1


class Measured(NamedTuple):
    """What a call cost."""

    value: Any
    """What it returned."""
    seconds: float
    """From call to return; the start of the process and its imports are not counted."""
    cpu_seconds: float
    """Of the process tree, user and system, polled: what a busy machine distorts least."""
    peak_gb: float
    """Largest resident memory of the process tree, polled; memory-mapped pages of files count."""


def measure(function: Callable[..., Any], *args: Any) -> Measured:
    """Call a function of a module in a spawned process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, args))
    process.start()
    sender.close()
    tree, watched, peak = psutil.Process(process.pid), dict[int, float](), 0
    while not receiver.poll(POLL_SECONDS) and process.is_alive():
        peak = max(peak, _look(tree, watched))
    if not receiver.poll():
        process.join()
        raise RuntimeError(f"{function.__name__} ended with exit code {process.exitcode}")
    value, seconds, own_seconds = receiver.recv()
    process.join()
    watched.pop(process.pid, None)
    return Measured(value, seconds, own_seconds + sum(watched.values()), peak / 2**30)


def _call(sender: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    started, began = time.perf_counter(), time.process_time()
    value = function(*args)
    sender.send((value, time.perf_counter() - started, time.process_time() - began))


def _look(tree: psutil.Process, watched: dict[int, float]) -> int:
    """Resident bytes of the tree now; `watched` keeps the CPU seconds of each process that was ever seen."""
    total = 0
    try:
        members = [tree, *tree.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for member in members:
        try:
            total += member.memory_info().rss
            times = member.cpu_times()
        except psutil.NoSuchProcess:
            continue
        watched[member.pid] = times.user + times.system
    return total
