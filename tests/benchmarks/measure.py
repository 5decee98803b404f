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
    """Of the process and its children, user and system: what a busy machine does not distort."""
    peak_gb: float
    """Largest resident memory of the process tree, polled; memory-mapped pages of files count."""


def measure(function: Callable[..., Any], *args: Any) -> Measured:
    """Call a function of a module in a spawned process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, args))
    process.start()
    sender.close()
    tree, peak = psutil.Process(process.pid), 0
    while not receiver.poll(POLL_SECONDS):
        peak = max(peak, _resident_bytes(tree))
        if not process.is_alive():
            break
    if not receiver.poll():
        process.join()
        raise RuntimeError(f"{function.__name__} ended with exit code {process.exitcode}")
    value, seconds, cpu_seconds = receiver.recv()
    process.join()
    return Measured(value, seconds, cpu_seconds, peak / 2**30)


def _call(sender: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    before, started = psutil.Process().cpu_times(), time.perf_counter()
    value = function(*args)
    seconds, after = time.perf_counter() - started, psutil.Process().cpu_times()
    parts = ("user", "system", "children_user", "children_system")
    sender.send((value, seconds, sum(getattr(after, name) - getattr(before, name) for name in parts)))


def _resident_bytes(tree: psutil.Process) -> int:
    total = 0
    try:
        members = [tree, *tree.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for member in members:
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total
