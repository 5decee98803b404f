"""The operator's command is told of a run that failed for good, once and in one sentence."""

import os
import select
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from orchestration.failed_runs import WILL_RETRY_TAG, failed_runs, tell


@dg.asset
def trained_model() -> None:
    raise dg.Failure('rank 1 died:\nno picture "7" $(touch x)')


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def failure(instance: dg.DagsterInstance, tags: dict[str, str] | None = None) -> dg.RunFailureSensorContext:
    """What Dagster hands to the sensor after a run of the job `model`."""
    job = dg.Definitions(
        [trained_model], jobs=[dg.define_asset_job("model", [trained_model])]
    ).resolve_job_def("model")
    result = job.execute_in_process(instance=instance, raise_on_error=False, tags=tags)
    (event,) = [event for event in result.all_events if event.is_run_failure]
    context = dg.build_run_status_sensor_context("failed_runs", event, instance, result.dagster_run)
    return context.for_run_failure()


def test_the_command_reads_which_run_failed_and_why(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    context = failure(instance)
    failed_runs(f"cat >> {tmp_path / 'told'}")(context)
    run = context.dagster_run.run_id[:8]
    assert (tmp_path / "told").read_text("utf-8") == (
        f'Run {run} of model failed: trained_model: rank 1 died: no picture "7" $(touch x)\n'
    )


def test_nobody_is_told_of_a_run_that_is_repeated(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    skipped = failed_runs(f"cat >> {tmp_path / 'told'}")(failure(instance, {WILL_RETRY_TAG: "true"}))
    assert isinstance(skipped, dg.SkipReason)
    assert not (tmp_path / "told").exists()


def test_without_a_command_the_sensor_says_so(instance: dg.DagsterInstance) -> None:
    skipped = failed_runs(None)(failure(instance))
    assert isinstance(skipped, dg.SkipReason)
    assert skipped.skip_message == "VIPOLYQWEN_ON_FAILURE names no command"


def test_a_command_that_fails_or_hangs_is_the_failure_of_the_tick(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = failure(instance)
    with pytest.raises(dg.Failure, match="VIPOLYQWEN_ON_FAILURE ended with 3: no such host"):
        failed_runs("echo no such host >&2; exit 3")(context)
    monkeypatch.setattr("orchestration.failed_runs.SECONDS_TO_TELL", 0.1)
    with pytest.raises(dg.Failure, match=r"took more than 0.1 seconds"):
        failed_runs("exec sleep 60")(context)


@pytest.mark.parametrize("command", ["sleep 60 | cat", "sleep 60 & wait", "sleep 60 &"])
def test_nothing_of_a_command_that_hangs_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("orchestration.failed_runs.SECONDS_TO_TELL", 1)
    os.mkfifo(tmp_path / "held")
    reading = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(reading, "rb", buffering=0) as held:
        with pytest.raises(dg.Failure, match=r"took more than 1 seconds"):
            tell(f"exec 9>{tmp_path / 'held'}; echo at it >&9; {command}", "it failed")
        assert held.read() == b"at it\n"
        assert select.select([held], [], [], 10)[0]  # at its end: nobody writes to it any more
        assert held.read() == b""
