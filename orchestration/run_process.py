"""The process of a run: how a later one tells that it is gone, and order after one that was killed."""

import os
import socket
from pathlib import Path

import dagster as dg
import psutil

from assets.training_set import HOST_TAG

PROCESS_TAG = ".dagster/vipolyqwen_process"
"""Dagster's pages do not show tags that begin so."""
EARLIER_PROCESS_TAG = "vipolyqwen/process"
"""Its name at runs of earlier code."""
UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
CLOCK_SECONDS = 2.0
"""What two readings of a process's start may differ by, where the clock is set between them."""


def process_tags(run_id: str) -> dict[str, str]:
    """Tags by which a later process can tell that this one, which executes the run, is gone.

    They name the run: Dagster copies the tags of a run to the one that repeats it, in another process. The
    start of a process is counted from the boot of its machine, since a clock that is set meanwhile would
    make another process of it.
    """
    pid = os.getpid()
    seconds = _seconds_from_boot(psutil.Process(pid))
    return {HOST_TAG: socket.gethostname(), PROCESS_TAG: f"{pid}:{seconds:.2f}:{_boot()}:{run_id}"}


def close_interrupted_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs as failed whose process on this machine is gone; free the pools they held. Returns their ids.

    Pools that have lost their slots get them back: nobody would ever have its turn.

    A killed process cannot say so itself, and neither can a killed code server say it of its runs; the slot
    in a pool would keep every later run waiting. So would the slot of a run that failed while Dagster could
    not write, as on a full disk, that it was free. Runs of other machines, and runs that carry no tags of
    their own process yet, stay as they are: nobody can tell from here.
    """
    closed = []
    here = dg.RunsFilter(statuses=UNFINISHED, tags={HOST_TAG: socket.gethostname()})
    for run in instance.get_runs(filters=here):
        if not process_is_gone(run):
            continue
        if run.status == dg.DagsterRunStatus.CANCELING:  # as was asked for: nobody shall repeat it
            instance.report_run_canceled(run, message="The process of this run is gone.")
        else:
            instance.report_run_failed(run, message="The process of this run ended without a word.")
        closed.append(run.run_id)
    storage = instance.event_log_storage
    for pool in storage.get_pool_limits():  # `dagster run wipe` deletes the slots and not the limit
        if storage.get_concurrency_info(pool.name).slot_count < pool.limit:
            storage.set_concurrency_slots(pool.name, pool.limit)
    for run_id in storage.get_concurrency_run_ids():
        holder = instance.get_run_by_id(run_id)
        if holder is not None and holder.is_finished and process_is_gone(holder):
            storage.free_concurrency_slots_for_run(run_id)
    return closed


def process_is_gone(run: dg.DagsterRun) -> bool:
    """Whether a run was executed on this machine by a process that is no more."""
    mark = (run.tags.get(PROCESS_TAG) or run.tags.get(EARLIER_PROCESS_TAG, "")).split(":")
    if run.tags.get(HOST_TAG) != socket.gethostname() or len(mark) != 4 or mark[3] != run.run_id:
        return False
    pid, seconds, boot, _ = mark
    return boot != _boot() or not _lives(int(pid), float(seconds))


def _lives(pid: int, seconds: float) -> bool:
    """Whether there is a process of that number that started then. One that waits to be buried is dead."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return abs(_seconds_from_boot(process) - seconds) < CLOCK_SECONDS
    except psutil.NoSuchProcess:
        return False


def _seconds_from_boot(process: psutil.Process) -> float:
    return float(process.create_time() - psutil.boot_time())


def _boot() -> str:
    """Which boot of the machine this is; empty where the system does not tell."""
    return BOOT_ID.read_text(encoding="ascii").strip() if BOOT_ID.is_file() else ""
