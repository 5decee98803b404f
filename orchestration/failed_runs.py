"""The sensor `failed_runs`, off until somebody turns it on in the UI: tells somebody that a run failed."""

import os
import signal
import subprocess

import dagster as dg

from orchestration.explanation import explain_failure
from orchestration.instance import PARTITION_TAG

INTERVAL_SECONDS = 60
SECONDS_TO_TELL = 60
WILL_RETRY_TAG = "dagster/will_retry"
"""Dagster's own tag of a failed run: whether it repeats the run by itself."""


def failed_runs(command: str | None) -> dg.SensorDefinition:
    """A run that failed, and that Dagster does not repeat, is told to the command VIPOLYQWEN_ON_FAILURE.

    The shell runs it with what failed and why on its standard input. A command of a person's tells that
    person, and is not told again.
    """

    @dg.run_failure_sensor(
        name="failed_runs", minimum_interval_seconds=INTERVAL_SECONDS, description=failed_runs.__doc__
    )
    def sensor(context: dg.RunFailureSensorContext) -> dg.SkipReason | None:
        run = context.instance.get_run_by_id(context.dagster_run.run_id) or context.dagster_run
        if run.tags.get(WILL_RETRY_TAG) == "true":
            return dg.SkipReason(f"run {run.run_id[:8]} is repeated")
        if command is None:
            return dg.SkipReason("VIPOLYQWEN_ON_FAILURE names no command")
        records = context.instance.all_logs(run.run_id)
        events = [record.dagster_event for record in records if record.dagster_event is not None]
        reason = explain_failure(events, run.tags.get(PARTITION_TAG))
        tell(command, f"Run {run.run_id[:8]} of {run.job_name} failed: {reason}")
        return None

    return sensor


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
