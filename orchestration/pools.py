"""Pools: of the steps in one, a single one runs at a time, over all runs. Who waits is told for whom.

`gpu` is for whatever needs the GPU, or the whole machine, and for the rebuilding of the training set, which
those read. `registry` is for the moments in which an alias moves.
"""

import time
from collections.abc import Callable, Iterator

import dagster as dg
from dagster._core.errors import raise_execution_interrupts  # dagster exports it nowhere

from assets.training_set import HOST_TAG
from orchestration.run_process import close_interrupted_runs

POLL_SECONDS = 2.0

Say = Callable[[str], None]


def wait_for_pool(instance: dg.DagsterInstance, event: dg.DagsterEvent, run_id: str, say: Say) -> None:
    """Where an event says that a step is blocked by a pool: sleep until it is the step's turn.

    Dagster itself waits in a loop that takes a whole core, and that neither Ctrl-C nor a cancellation ends.
    Whoever holds the pool and is dead is closed meanwhile.

    Raises:
        DagsterExecutionInterruptedError: somebody stopped the run
    """
    pool, said = blocking_pool(event), ""
    if pool is None:
        return
    with raise_execution_interrupts():
        while is_waiting(instance, pool, run_id):
            close_interrupted_runs(instance)
            if (holders := ", ".join(pool_holders(instance, pool))) and holders != said:
                say(f"{event.step_key} waits for the pool {pool}: {holders}")
                said = holders
            time.sleep(POLL_SECONDS)


def blocking_pool(event: dg.DagsterEvent) -> str | None:
    """The pool that blocks an event's step; None: it tells of something else."""
    if event.event_type != dg.DagsterEventType.ENGINE_EVENT or event.step_key is None:
        return None
    pool = event.engine_event_data.metadata.get("pool")
    return None if pool is None else str(pool.value)


def is_waiting(instance: dg.DagsterInstance, pool: str, run_id: str) -> bool:
    """Whether a step of the run is in the pool's queue and it is not its turn yet."""
    return run_id in instance.event_log_storage.get_concurrency_info(pool).pending_run_ids


def pool_holders(instance: dg.DagsterInstance, pool: str) -> Iterator[str]:
    """Who holds a pool, in words: `run 1a2b3c4d of model holds it with trained_model, on gpu1`."""
    for slot in instance.event_log_storage.get_concurrency_info(pool).claimed_slots:
        run = instance.get_run_by_id(slot.run_id)
        job, host = (run.job_name, run.tags.get(HOST_TAG)) if run is not None else ("a deleted run", None)
        place = f", on {host}" if host else ""
        yield f"run {slot.run_id[:8]} of {job} holds it with {slot.step_key}{place}"
