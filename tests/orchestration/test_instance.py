"""Dagster's instance: settings, and order after a killed process."""

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

from orchestration.instance import close_interrupted_runs, open_instance, process_tags, write_settings
from vipolyqwen_core.workspace import Workspace

KILLED_RUN = """
import os, signal, sys
from pathlib import Path
import dagster as dg
from orchestration.instance import open_instance, process_tags
from vipolyqwen_core.workspace import Workspace

@dg.asset(pool="gpu")
def training():
    os.kill(os.getpid(), signal.SIGKILL)

with open_instance(Workspace(Path(sys.argv[1]))) as instance:
    dg.materialize([training], instance=instance, tags=process_tags(os.getpid()))
"""


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return Workspace(tmp_path)


def test_telemetry_is_off_and_stage_logs_reach_the_run(workspace: Workspace) -> None:
    with open_instance(workspace) as instance:
        assert not instance.telemetry_enabled
        assert instance.managed_python_loggers == ["quality", "vipolyqwen_core"]


def test_a_dagster_yaml_of_somebody_is_left_alone(workspace: Workspace) -> None:
    path = write_settings(workspace.dagster_home)
    path.write_text(yaml.safe_dump({"telemetry": {"enabled": False}}))
    write_settings(workspace.dagster_home)
    assert yaml.safe_load(path.read_text()) == {"telemetry": {"enabled": False}}


def test_a_killed_run_is_closed_and_frees_its_pool(workspace: Workspace) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_RUN, str(workspace.home)], capture_output=True)
    assert killed.returncode == -9
    with open_instance(workspace) as instance:
        (run,) = instance.get_runs()
        assert run.status == dg.DagsterRunStatus.STARTED
        pool = instance.event_log_storage.get_concurrency_info("gpu")
        assert pool.active_run_ids == {run.run_id}

        assert close_interrupted_runs(instance) == [run.run_id]

        assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE
        assert not instance.event_log_storage.get_concurrency_info("gpu").active_run_ids


def test_runs_of_living_processes_stay(workspace: Workspace) -> None:
    with open_instance(workspace) as instance:
        alive = instance.create_run_for_job(_nothing(), tags=process_tags(os.getpid()))
        foreign = instance.create_run_for_job(_nothing())
        assert close_interrupted_runs(instance) == []
        for run in (alive, foreign):
            assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.NOT_STARTED


def _nothing() -> dg.JobDefinition:
    @dg.job
    def nothing() -> None: ...

    return nothing
