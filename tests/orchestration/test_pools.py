"""Waiting for a pool: asleep, told for whom, ended by Ctrl-C, and only where it is needed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import dagster as dg
import psutil
import pytest

from orchestration.instance import open_instance
from orchestration.run_process import PROCESS_TAG, process_tags
from vipolyqwen_core.workspace import Workspace

WAITING = """
import sys
from pathlib import Path
from dagster import execute_job, job, op, reconstructable
from orchestration.executor import signed_executor
from orchestration.factory import execute, refuse_failure
from orchestration.instance import open_instance
from orchestration.patience import PatientHandler
from orchestration.progress import logger_of
from vipolyqwen_core.workspace import Workspace

def say(sentence):
    print(sentence, flush=True)

@op(pool="gpu")
def export_champion():
    print("RAN", flush=True)

@job(executor_def=signed_executor)
def rollback():
    export_champion()

if __name__ == "__main__":
    with open_instance(Workspace(Path(sys.argv[1]))) as instance:
        {start}
"""
IN_A_TERMINAL = """
        loggers = {"patience": logger_of(PatientHandler(instance, say), "waits")}
        patient = rollback.graph.to_job("rollback", logger_defs=loggers)
        try:
            refuse_failure(execute(patient, instance, loggers), None)
        except KeyboardInterrupt:
            print("STOPPED", flush=True)
"""
IN_THE_UI = """
        print(execute_job(reconstructable(rollback), instance=instance).success, flush=True)
"""


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return Workspace(tmp_path / "home")


@dg.op(pool="gpu")
def trained_model() -> None: ...


@dg.job
def model() -> None:
    trained_model()


def hold(instance: dg.DagsterInstance) -> dg.DagsterRun:
    """A run of `model` that holds the GPU, of this process."""
    run_id = str(uuid4())
    run = instance.create_run_for_job(
        model, run_id=run_id, tags=process_tags(run_id), status=dg.DagsterRunStatus.STARTED
    )
    storage = instance.event_log_storage
    storage.initialize_concurrency_limit_to_default("gpu")
    assert storage.claim_concurrency_slot("gpu", run_id, "trained_model").is_claimed
    return run


class Waiter:
    """A run of `rollback` in a process of its own, and what it prints."""

    def __init__(self, folder: Path, how: str) -> None:
        (folder / "waiting.py").write_text(WAITING.replace("        {start}\n", how))
        self.printed = folder / "printed.txt"
        with self.printed.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, str(folder / "waiting.py"), str(folder / "home")],
                stdout=file,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )

    def says(self, words: str) -> bool:
        """Whether it prints the words within half a minute."""
        for _ in range(300):
            if words in self.printed.read_text():
                return True
            time.sleep(0.1)
        return False

    def load(self) -> float:
        """Percent of a core that it takes."""
        return psutil.Process(self.process.pid).cpu_percent(1.0)


Start = Callable[[str], Waiter]


@pytest.fixture
def start(workspace: Workspace) -> Iterator[Start]:
    """Starts such a process; none outlives the test."""
    started: list[Waiter] = []

    def starter(how: str) -> Waiter:
        started.append(Waiter(workspace.home.parent, how))
        return started[-1]

    yield starter
    for waiter in started:
        waiter.process.kill()
        waiter.process.wait()


def waiting_run(instance: dg.DagsterInstance) -> str:
    """The run whose step stands in the queue of the GPU."""
    for _ in range(300):
        if ids := instance.event_log_storage.get_concurrency_info("gpu").pending_run_ids:
            return next(iter(ids))
        time.sleep(0.1)
    pytest.fail("nobody waits")


def test_who_waits_in_a_terminal_is_told_for_whom_sleeps_and_stops_at_ctrl_c(
    workspace: Workspace, start: Start
) -> None:
    with open_instance(workspace) as instance:
        holder = hold(instance)
        waiter = start(IN_A_TERMINAL)
        holds = f"run {holder.run_id[:8]} of model holds it with trained_model"
        assert waiter.says(f"export_champion waits for the pool gpu: {holds}")
        assert waiter.load() < 50
        waiter.process.send_signal(signal.SIGINT)
        assert waiter.says("STOPPED")
        assert waiter.process.wait(timeout=20) == 0
        pool = instance.event_log_storage.get_concurrency_info("gpu")
        assert {step.run_id for step in pool.pending_steps} == {holder.run_id}
        (run,) = instance.get_runs(filters=dg.RunsFilter(job_name="rollback"))
        assert run.status == dg.DagsterRunStatus.FAILURE


def test_a_run_of_the_ui_waits_asleep_and_can_be_stopped(workspace: Workspace, start: Start) -> None:
    with open_instance(workspace) as instance:
        holder = hold(instance)
        waiter = start(IN_THE_UI)
        waiting_run(instance)
        assert waiter.load() < 50
        waiter.process.send_signal(signal.SIGTERM)
        assert waiter.says("False")
        pool = instance.event_log_storage.get_concurrency_info("gpu")
        assert {step.run_id for step in pool.pending_steps} == {holder.run_id}


@pytest.mark.parametrize("how", [IN_A_TERMINAL, IN_THE_UI], ids=["in a terminal", "in the UI"])
def test_a_step_runs_as_soon_as_the_pool_is_free(workspace: Workspace, start: Start, how: str) -> None:
    with open_instance(workspace) as instance:
        holder = hold(instance)
        waiter = start(how)
        waiting_run(instance)
        instance.event_log_storage.free_concurrency_slots_for_run(holder.run_id)
        assert waiter.says("RAN")


def test_a_pool_has_slots_again_after_a_wipe_of_the_runs(workspace: Workspace, start: Start) -> None:
    with open_instance(workspace) as instance:
        hold(instance)
        instance.wipe()
        assert start(IN_A_TERMINAL).says("RAN")


def test_a_holder_that_died_is_closed_while_others_wait(workspace: Workspace, start: Start) -> None:
    with open_instance(workspace) as instance:
        holder = hold(instance)
        waiter = start(IN_A_TERMINAL)
        waiting_run(instance)
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        mark = holder.tags[PROCESS_TAG].partition(":")[2]
        instance.add_run_tags(holder.run_id, {PROCESS_TAG: f"{ended.pid}:{mark}"})
        assert waiter.says("RAN")
        assert instance.get_run_by_id(holder.run_id).status == dg.DagsterRunStatus.FAILURE
