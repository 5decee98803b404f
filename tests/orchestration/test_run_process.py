"""The process of a run: who is gone is closed, in whatever way it was started, and nobody else."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import dagster as dg
import psutil
import pytest
from dagster._core.storage.tags import TagType, get_tag_type

from assets.training_set import HOST_TAG
from orchestration.instance import open_instance
from orchestration.run_process import (
    PROCESS_TAG,
    close_interrupted_runs,
    process_is_gone,
    process_tags,
)
from vipolyqwen_core.workspace import Workspace

KILLED = """
import os, signal, sys
from pathlib import Path
from dagster import execute_job, job, op, reconstructable
from orchestration.executor import signed_executor
from orchestration.factory import execute
from orchestration.instance import open_instance
from vipolyqwen_core.workspace import Workspace

@op(pool="gpu")
def train():
    os.kill(os.getpid(), signal.SIGKILL)

@job(executor_def=signed_executor)
def model():
    train()

if __name__ == "__main__":
    with open_instance(Workspace(Path(sys.argv[1]))) as instance:
        {start}
"""
STARTS = {
    "in a terminal": ("execute(model, instance, [])", "false"),
    "in the UI": ("execute_job(reconstructable(model), instance=instance)", "true"),
}
"""A code server executes a run by the executor of its job, without a tag that somebody gave it before.
Dagster repeats it; whoever typed a command does so himself."""

ONE, OTHER = str(uuid4()), str(uuid4())


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return Workspace(tmp_path / "home")


@pytest.mark.parametrize(("start", "repeated"), STARTS.values(), ids=STARTS)
def test_a_killed_run_is_closed_and_frees_its_pool(workspace: Workspace, start: str, repeated: str) -> None:
    file = workspace.home.parent / "killed.py"
    file.write_text(KILLED.format(start=start))
    root = Path(__file__).parents[2]
    killed = subprocess.run(
        [sys.executable, str(file), str(workspace.home)],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with open_instance(workspace) as instance:
        (run,) = instance.get_runs()
        assert run.status == dg.DagsterRunStatus.STARTED
        pool = instance.event_log_storage.get_concurrency_info("gpu")
        assert pool.active_run_ids == {run.run_id}

        assert close_interrupted_runs(instance) == [run.run_id]

        closed = instance.get_run_by_id(run.run_id)
        assert closed.status == dg.DagsterRunStatus.FAILURE
        assert closed.tags["dagster/will_retry"] == repeated
        pool = instance.event_log_storage.get_concurrency_info("gpu")
        assert not pool.active_run_ids
        assert not pool.pending_steps


def test_a_run_that_failed_without_freeing_its_pool_keeps_none_waiting(workspace: Workspace) -> None:
    with open_instance(workspace) as instance:
        storage = instance.event_log_storage
        create(instance, ONE, gone(ONE), dg.DagsterRunStatus.FAILURE)
        create(instance, OTHER, process_tags(OTHER), dg.DagsterRunStatus.FAILURE)  # its process may still end
        for pool, run_id in (("gpu", ONE), ("registry", OTHER)):
            storage.initialize_concurrency_limit_to_default(pool)
            assert storage.claim_concurrency_slot(pool, run_id, "step").is_claimed
        assert close_interrupted_runs(instance) == []
        assert storage.get_concurrency_run_ids() == {OTHER}
        assert storage.claim_concurrency_slot("gpu", str(uuid4()), "step").is_claimed
        assert not storage.claim_concurrency_slot("registry", str(uuid4()), "step").is_claimed


def test_runs_of_living_and_of_unknown_processes_stay(workspace: Workspace) -> None:
    with open_instance(workspace) as instance:
        alive = create(instance, ONE, process_tags(ONE))
        unsigned = create(instance, str(uuid4()), {})
        foreign = create(instance, OTHER, {**gone(OTHER), HOST_TAG: "another"})
        repeated = create(instance, str(uuid4()), gone(ONE))  # the tags of the run that it repeats
        assert close_interrupted_runs(instance) == []
        for run in (alive, unsigned, foreign, repeated):
            assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.STARTED


def test_a_run_that_was_being_cancelled_is_cancelled_and_not_failed(workspace: Workspace) -> None:
    with open_instance(workspace) as instance:
        run = create(instance, ONE, gone(ONE), dg.DagsterRunStatus.CANCELING)
        assert close_interrupted_runs(instance) == [ONE]
        assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.CANCELED


def test_a_number_that_another_process_has_got_since_is_not_the_process(workspace: Workspace) -> None:
    pid, seconds, boot, _ = process_tags(ONE)[PROCESS_TAG].split(":")
    earlier = f"{pid}:{float(seconds) - 100:.2f}:{boot}:{ONE}"
    before_the_boot = f"{pid}:{seconds}:another:{OTHER}"
    with open_instance(workspace) as instance:
        for run_id, mark in ((ONE, earlier), (OTHER, before_the_boot)):
            assert process_is_gone(create(instance, run_id, {**process_tags(run_id), PROCESS_TAG: mark}))


def test_a_clock_that_is_set_makes_no_other_process_of_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = process_tags(ONE)
    boot = psutil.boot_time()
    sound = psutil.Process.create_time
    monkeypatch.setattr(psutil, "boot_time", lambda: boot + 3600)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: sound(self) + 3600)
    with open_instance(workspace) as instance:
        assert not process_is_gone(create(instance, ONE, tags))


def test_the_list_of_runs_shows_no_process(workspace: Workspace) -> None:
    shown = [name for name in process_tags(ONE) if get_tag_type(name) != TagType.HIDDEN]
    assert shown == [HOST_TAG]


def test_the_process_of_a_run_of_earlier_code_is_known(workspace: Workspace) -> None:
    with open_instance(workspace) as instance:
        for run_id, tags, is_gone in ((ONE, gone(ONE), True), (OTHER, process_tags(OTHER), False)):
            tags["vipolyqwen/process"] = tags.pop(PROCESS_TAG)
            assert process_is_gone(create(instance, run_id, tags)) == is_gone
        repeated = {**gone(ONE), **process_tags(again := str(uuid4()))}
        repeated["vipolyqwen/process"] = gone(ONE)[PROCESS_TAG]
        assert not process_is_gone(create(instance, again, repeated))


def create(
    instance: dg.DagsterInstance,
    run_id: str,
    tags: dict[str, str],
    status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED,
) -> dg.DagsterRun:
    @dg.job
    def nothing() -> None: ...

    return instance.create_run_for_job(nothing, run_id=run_id, tags=tags, status=status)


def gone(run_id: str) -> dict[str, str]:
    """Tags of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    tags = process_tags(run_id)
    _, *rest = tags[PROCESS_TAG].split(":")
    return {**tags, PROCESS_TAG: ":".join([str(ended.pid), *rest])}
