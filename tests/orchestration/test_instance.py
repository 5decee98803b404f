"""Dagster's instance: what its settings hold, and which runs of the queue they let through."""

import errno
import os
import re
import sqlite3
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.instance.config import PoolGranularity
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon
from sqlalchemy.exc import OperationalError

from orchestration.definitions import build_definitions
from orchestration.instance import PARTITION_TAG, SETTINGS, lacking, open_instance, write_settings
from vipolyqwen_core.process_ties import SECONDS_TO_SAVE
from vipolyqwen_core.workspace import Workspace


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


@pytest.mark.parametrize("text", ["run_queue: {max_concurrent: 1}", "foo: [", "- telemetry"])
def test_a_mistake_in_dagster_yaml_is_told_with_the_file(workspace: Workspace, text: str) -> None:
    settings = write_settings(workspace.dagster_home)
    settings.write_text(text)
    with (
        pytest.raises(ValueError, match=f"^{re.escape(str(settings))} is wrong: .*; mend it, or delete it"),
        open_instance(workspace),
    ):
        pass


def test_a_full_disk_leaves_no_half_of_a_dagster_yaml(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(path: Path, *arguments: object, **keys: object) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space left"):
        write_settings(workspace.dagster_home)
    assert not (workspace.dagster_home / "dagster.yaml").exists()


@pytest.mark.parametrize("name", ["history/runs.db", "history/runs/index.db", "schedules/schedules.db"])
def test_a_damaged_database_is_told_with_the_folder(workspace: Workspace, name: str) -> None:
    @dg.job
    def corpus() -> None: ...

    with open_instance(workspace):
        pass
    (workspace.dagster_home / name).write_bytes(b"cut off" * 1000)
    told = rf"Dagster in {workspace.dagster_home} cannot be used \(file is not a database\): restore"
    with pytest.raises(ValueError, match=told), open_instance(workspace) as instance:
        corpus.execute_in_process(instance=instance)


def test_what_a_dagster_yaml_of_an_older_version_lacks_is_named(workspace: Workspace) -> None:
    with open_instance(workspace) as instance:
        assert lacking(instance) == []
    older = {**SETTINGS, "run_monitoring": {"enabled": True}}
    del older["concurrency"], older["run_retries"]
    write_settings(workspace.dagster_home).write_text(yaml.safe_dump(older))
    with open_instance(workspace) as instance:
        limits = ["the limit on vipolyqwen/training_set", "the limit on dagster/partition"]
        assert lacking(instance) == [*limits, "run_retries", "a cancel_timeout_seconds of 360"]


def test_a_run_that_is_cancelled_keeps_its_pool_while_its_training_saves(workspace: Workspace) -> None:
    with open_instance(workspace) as instance:
        assert instance.run_monitoring_cancel_timeout_seconds > SECONDS_TO_SAVE


def test_a_run_that_needs_the_training_set_waits_in_the_queue_for_the_other(workspace: Workspace) -> None:
    """A rollback does not, and neither does the curation of a source, but for that of the same source."""
    definitions = build_definitions(workspace, None, "demo")
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("factory"), "factory")

    def create(job: str, status: dg.DagsterRunStatus, source: str | None = None) -> None:
        definition = definitions.resolve_job_def(job)
        instance.create_run_for_job(
            definition,
            status=status,
            tags={**definition.run_tags, **({PARTITION_TAG: source} if source else {})},
            run_config={"ops": {"roll_back": {"config": {"version": 1}}}} if job == "rollback" else {},
            remote_job_origin=RemoteJobOrigin(repository, job),
        )

    with open_instance(workspace) as instance:
        create("model", dg.DagsterRunStatus.STARTED)
        create("corpus", dg.DagsterRunStatus.STARTED, "demo_ocr")
        for source in ("demo_ocr", "demo_vqa"):
            create("corpus", dg.DagsterRunStatus.QUEUED, source)
        for job in ("model", "pooling_ablation", "rollback"):
            create(job, dg.DagsterRunStatus.QUEUED)
        daemon = QueuedRunCoordinatorDaemon(interval_seconds=1)
        chosen = daemon._get_runs_to_dequeue(instance, instance.get_concurrency_config(), None)
        assert [run.job_name for run in chosen] == ["rollback", "corpus"]
        assert chosen[1].tags[PARTITION_TAG] == "demo_vqa"


def test_a_lost_process_is_repeated_and_a_failed_step_is_not(workspace: Workspace) -> None:
    with open_instance(workspace) as instance:
        assert instance.run_retries_enabled
        assert instance.run_retries_max_retries == 2
        assert not instance.run_retries_retry_on_asset_or_op_failure


def test_a_lost_process_is_noticed_and_what_it_held_is_free_again(workspace: Workspace) -> None:
    with open_instance(workspace) as instance:
        assert instance.run_monitoring_enabled
        assert instance.run_monitoring_settings["free_slots_after_run_end_seconds"] == 60


def test_one_step_at_a_time_holds_a_pool_and_not_the_whole_of_its_run(workspace: Workspace) -> None:
    with open_instance(workspace) as instance:
        pools = instance.get_concurrency_config().pool_config
        assert (pools.pool_granularity, pools.default_pool_limit) == (PoolGranularity.OP, 1)


def test_a_full_disk_is_no_reason_to_give_up_the_history_of_runs(workspace: Workspace) -> None:
    full = sqlite3.OperationalError("database or disk is full")
    with (
        pytest.raises(ValueError, match=r"cannot be used \(database or disk is full\)$"),
        open_instance(workspace),
    ):
        raise OperationalError("INSERT", {}, full)
