"""The operator's command is told of a run that failed for good, once and in one sentence."""

import os
import select
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

from orchestration import failed_runs as module
from orchestration.failed_runs import WILL_RETRY_TAG, failed_runs, tell


@dg.asset
def trained_model() -> None:
    raise dg.Failure('rank 1 died:\nno picture "7" $(touch x)')


FACTORY = RegisteredCodeLocationOrigin("factory")


class Watched:
    """An instance of Dagster, its failed runs, and the sensor with its cursor."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.cursor: str | None = None
        self.job = dg.Definitions(
            [trained_model],
            jobs=[dg.define_asset_job("model", [trained_model])],
            executor=dg.in_process_executor,
        ).resolve_job_def("model")

    def fail(self, location: str | None = "factory", **tags: str) -> str:
        """A run of a code location fails, or one of a command; returns its id as it is told."""
        factory = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(location or ""), "factory")
        origin = RemoteJobOrigin(factory, "model") if location else None
        run = self.instance.create_run_for_job(self.job, tags=tags, remote_job_origin=origin)
        execute_run(InMemoryJob(self.job), run, self.instance)
        return run.run_id[:8]

    def tick(self, command: str | None) -> str | None:
        """The sensor looks; returns what it says."""
        here = {"instance": self.instance, "code_location_origin": FACTORY}
        result = failed_runs(command)(dg.SensorEvaluationContext(None, cursor=self.cursor, **here))
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor
        return result.skip_reason.skip_message if isinstance(result.skip_reason, dg.SkipReason) else None


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    """The sensor was turned on after a failure."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        watched = Watched(instance)
        watched.fail()
        assert watched.tick("exit 1") == "it listens from now on"
        yield watched


@pytest.fixture
def told(tmp_path: Path) -> Path:
    return tmp_path / "told"


def test_the_command_reads_which_run_failed_and_why_once(watched: Watched, told: Path) -> None:
    run = watched.fail()
    assert watched.tick(f"cat >> {told}") == f"run {run} was told"
    assert watched.tick(f"cat >> {told}") == "no run has failed"
    assert told.read_text("utf-8") == (
        f'Run {run} of model failed: trained_model: rank 1 died: no picture "7" $(touch x)\n'
    )


def test_what_a_command_did_not_take_is_told_again_and_later_failures_after_it(
    watched: Watched, told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [watched.fail(), watched.fail()]
    for _ in range(2):
        with pytest.raises(dg.Failure, match="VIPOLYQWEN_ON_FAILURE ended with 3: no such host"):
            watched.tick("echo no such host >&2; exit 3")
    monkeypatch.setattr(module, "SECONDS_TO_TELL", 0.1)
    with pytest.raises(dg.Failure, match=r"took more than 0.1 seconds"):
        watched.tick("exec sleep 60")
    monkeypatch.undo()
    for _ in range(3):
        watched.tick(f"cat >> {told}")
    assert [line.split()[1] for line in told.read_text("utf-8").splitlines()] == runs


def test_what_a_command_did_not_take_for_a_day_is_left(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.fail()
    monkeypatch.setattr(module, "MAX_AGE_SECONDS", 0)
    assert watched.tick("exit 1") == "no run has failed"


def test_nobody_is_told_of_a_run_that_is_repeated_or_another_s(watched: Watched) -> None:
    watched.fail(**{WILL_RETRY_TAG: "true"})
    watched.fail(location="another")
    watched.fail(location=None)  # a command told the person who gave it
    assert watched.tick("exit 1") == "no run has failed"


def test_a_failure_that_has_the_number_of_a_deleted_one_is_told(watched: Watched) -> None:
    watched.fail()
    watched.tick("exit 0")
    (last,) = watched.instance.get_runs(limit=1)
    watched.instance.delete_run(last.run_id)
    assert watched.tick("exit 0") == "no run has failed"
    run = watched.fail()
    assert watched.tick("exit 0") == f"run {run} was told"


def test_without_a_command_the_sensor_says_so(watched: Watched) -> None:
    watched.fail()
    assert watched.tick(None) == "VIPOLYQWEN_ON_FAILURE names no command"


def test_a_cursor_of_dagsters_own_sensor_means_from_now_on(watched: Watched) -> None:
    watched.fail()
    watched.cursor = '{"record_id": 1, "update_timestamp": null}'
    assert watched.tick("exit 1") == "it listens from now on"


@pytest.mark.parametrize("command", ["sleep 60 | cat", "sleep 60 & wait", "sleep 60 &"])
def test_nothing_of_a_command_that_hangs_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(module, "SECONDS_TO_TELL", 1)
    os.mkfifo(tmp_path / "held")
    reading = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(reading, "rb", buffering=0) as held:
        with pytest.raises(dg.Failure, match=r"took more than 1 seconds"):
            tell(f"exec 9>{tmp_path / 'held'}; echo at it >&9; {command}", "it failed")
        assert held.read() == b"at it\n"
        assert select.select([held], [], [], 10)[0]  # at its end: nobody writes to it any more
        assert held.read() == b""
