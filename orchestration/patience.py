"""Patience on a terminal: whoever waits for a pool is told for whom, sleeps, and can be stopped."""

import logging

import dagster as dg

from orchestration.pools import Say, wait_for_pool


class PatientHandler(logging.Handler):
    """Waits where a run's events say that a step is blocked.

    A run in this process has Dagster's own executor, which cannot be exchanged; a logger sees each event
    between two steps, and what it raises ends the run as an interruption of a step would.
    """

    def __init__(self, instance: dg.DagsterInstance, say: Say) -> None:
        super().__init__()
        self.instance, self.say = instance, say

    def emit(self, record: logging.LogRecord) -> None:
        """One record of a run."""
        event: dg.DagsterEvent | None = getattr(record, "dagster_event", None)
        if event is not None:
            run_id = vars(record)["dagster_meta"]["run_id"]
            wait_for_pool(self.instance, event, run_id, self.say)
