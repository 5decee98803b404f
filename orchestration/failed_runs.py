"""The sensor `failed_runs`, off until somebody turns it on in the UI: tells somebody that a run failed."""

import os
import signal
import subprocess
import time
from typing import Final

import dagster as dg

from orchestration.explanation import explain_failure
from orchestration.instance import PARTITION_TAG

FAILURE: Final = dg.DagsterEventType.RUN_FAILURE
INTERVAL_SECONDS = 30
SECONDS_TO_TELL = 40
"""What the command may take: Dagster ends a tick after a minute."""
MAX_FAILURES = 50
"""That a tick looks at."""
MAX_AGE_SECONDS = 24 * 3600
"""A failure of longer ago is nobody's news."""
WILL_RETRY_TAG = "dagster/will_retry"
"""Dagster's own tag of a failed run: whether it repeats the run by itself."""


def failed_runs(command: str | None) -> dg.SensorDefinition:
    """A run that failed, and that Dagster does not repeat, is told to the command VIPOLYQWEN_ON_FAILURE.

    The shell runs it with what failed and why on its standard input. Where it fails itself, as without a
    network, the run is told again at the next tick, for a day. A command of a person's tells that person, and
    is not told again.
    """

    # Dagster's own sensor of failed runs would go on behind a run of which it could not tell
    @dg.sensor(name="failed_runs", minimum_interval_seconds=INTERVAL_SECONDS, description=failed_runs.__doc__)
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        instance, now = context.instance, time.time()
        try:
            reached = float(context.cursor or "")
        except ValueError:  # none yet, or that of Dagster's own sensor
            return _reached(now, "it listens from now on")
        # no ids: SQLite gives those of a run that was deleted to another
        later = dg.RunStatusChangeRecordsFilter(FAILURE, after_timestamp=max(reached, now - MAX_AGE_SECONDS))
        for failure in instance.fetch_run_status_changes(later, limit=MAX_FAILURES, ascending=True).records:
            run, reached = instance.get_run_by_id(failure.run_id), failure.timestamp
            if run is None or not _is_news(run, context):
                continue
            if command is None:
                return _reached(reached, "VIPOLYQWEN_ON_FAILURE names no command")
            tell(command, _sentence(run, instance))
            return _reached(reached, f"run {run.run_id[:8]} was told")  # one a tick, which has a minute
        return _reached(reached, "no run has failed")

    return sensor


def _reached(timestamp: float, reason: str) -> dg.SensorResult:
    """The end of a tick: the next one tells of what failed after this moment."""
    return dg.SensorResult(skip_reason=reason, cursor=repr(timestamp))


def _is_news(run: dg.DagsterRun, context: dg.SensorEvaluationContext) -> bool:
    """Whether a failed run is one of this factory's, was not started by a command, and is not repeated."""
    origin, here = run.remote_job_origin, context.code_location_origin
    if origin is None or run.tags.get(WILL_RETRY_TAG) == "true":
        return False
    location = origin.repository_origin.code_location_origin
    return here is None or location.location_name == here.location_name


def _sentence(run: dg.DagsterRun, instance: dg.DagsterInstance) -> str:
    """Which run failed, and why."""
    events = [record.dagster_event for record in instance.all_logs(run.run_id) if record.dagster_event]
    reason = explain_failure(events, run.tags.get(PARTITION_TAG))
    return f"Run {run.run_id[:8]} of {run.job_name} failed: {reason}"


def tell(command: str, sentence: str) -> None:
    """Run a shell command with a sentence on its standard input.

    It has a process group of its own, all of which is killed where it takes too long: a pipeline would go on.

    Raises:
        dg.Failure: it failed, or took too long; Dagster shows that as the failure of the sensor's tick
    """
    with subprocess.Popen(
        command,
        shell=True,  # a command line of the operator's own
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    ) as process:
        try:
            _, complaint = process.communicate(f"{sentence}\n", timeout=SECONDS_TO_TELL)
        except subprocess.TimeoutExpired as error:
            raise dg.Failure(f"VIPOLYQWEN_ON_FAILURE took more than {SECONDS_TO_TELL} seconds") from error
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise dg.Failure(f"VIPOLYQWEN_ON_FAILURE ended with {process.returncode}: {complaint.strip()}")
