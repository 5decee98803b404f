"""Sources are partitions: each is run, redone, added and stopped alone; a backfill runs several."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
import yaml

from orchestration.definitions import build_definitions
from orchestration.run_process import PROCESS_TAG
from quality import curate as curate_module
from tests.quality.conftest import instruction
from vipolyqwen_core.workspace import Workspace

STAGES = ("curated_corpus", "tagged_corpus", "validated_corpus")


class Factory:
    """A manifest, its files, and runs of the job `corpus` in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = Workspace(folder / "home")
        self.instance = dg.DagsterInstance.ephemeral()
        self.names: list[str] = []

    def write(self, name: str, rows: int, broken: int = 0) -> None:
        """The file of a source, which joins the manifest."""
        start = 1000 * (1 + sum(map(ord, name)))
        lines = [json.dumps(instruction(start + number)) for number in range(rows)] + ["{broken"] * broken
        (self.folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        self.names = list(dict.fromkeys([*self.names, name]))
        sources = [{"name": name, "format": "owner_jsonl", "paths": f"{name}.jsonl"} for name in self.names]
        (self.folder / "manifest.yaml").write_text(yaml.safe_dump({"sources": sources}))

    def run(self, name: str) -> dg.ExecuteInProcessResult:
        """The job for one source, as the code location offers it now."""
        definitions = build_definitions(self.place, str(self.folder / "manifest.yaml"), "demo")
        job = definitions.resolve_job_def("corpus")
        return job.execute_in_process(instance=self.instance, partition_key=name, raise_on_error=False)

    def partitions(self, asset: str) -> set[str]:
        """Partitions that were materialised."""
        return self.instance.get_materialized_partitions(dg.AssetKey(asset))


@pytest.fixture
def factory(tmp_path: Path) -> Factory:
    return Factory(tmp_path)


def reused(result: dg.ExecuteInProcessResult, asset: str) -> bool:
    (event,) = result.asset_materializations_for_node(asset)
    return "true" in str(event.metadata["reused"].value)


def failed_checks(result: dg.ExecuteInProcessResult) -> dict[str, str | None]:
    return {
        f"{found.asset_key.to_user_string()}.{found.check_name}": found.description
        for found in result.get_asset_check_evaluations()
        if not found.passed and found.severity is dg.AssetCheckSeverity.ERROR
    }


def test_a_changed_source_alone_is_redone_and_a_new_one_is_a_partition(factory: Factory) -> None:
    factory.write("letters", 6)
    factory.write("notes", 6)
    assert all(factory.run(name).success for name in factory.names)
    assert all(factory.partitions(stage) == {"letters", "notes"} for stage in STAGES)

    factory.write("letters", 7)
    same, changed = factory.run("notes"), factory.run("letters")
    assert {stage: reused(same, stage) for stage in STAGES} == dict.fromkeys(STAGES, True)
    assert {stage: reused(changed, stage) for stage in STAGES} == dict.fromkeys(STAGES, False)

    factory.write("chats", 5)
    assert factory.run("chats").success
    assert all(factory.partitions(stage) == {"letters", "notes", "chats"} for stage in STAGES)


def test_a_check_alone_without_its_source_says_what_it_needs(factory: Factory) -> None:
    factory.write("letters", 6)
    assert factory.run("letters").success
    checks = build_definitions(factory.place, str(factory.folder / "manifest.yaml"), "demo")
    check = dg.AssetCheckKey(dg.AssetKey("curated_corpus"), "has_pairs")
    job = dg.define_asset_job("judge", dg.AssetSelection.checks(check))
    alone = dg.Definitions.merge(checks, dg.Definitions(jobs=[job])).resolve_job_def("judge")
    failed = alone.execute_in_process(instance=factory.instance, raise_on_error=False)
    (event,) = failed.get_step_failure_events()
    assert "curated_corpus.has_pairs is a check of one source: launch it with a partition" in str(event)


def spoil(file: str) -> Callable[[Path], None]:
    def drop_a_row(folder: Path) -> None:
        rows = pl.read_parquet(folder / file)
        rows.tail(rows.height - 1).write_parquet(folder / file)

    return drop_a_row


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("ledger.parquet", "8 records: 6 gave pairs, 1 in the ledger"),
        ("pairs.parquet", "6 pairs: 5 out, 0 in the ledger"),
    ],
)
def test_a_row_that_vanished_in_curation_stops_the_run(
    factory: Factory, monkeypatch: pytest.MonkeyPatch, file: str, sentence: str
) -> None:
    """Both equations are held against the tables, whatever the stage says of itself."""
    factory.write("letters", 6, broken=2)
    sound = curate_module.curate

    def lossy(source, settings, workspace):
        summary = sound(source, settings, workspace)
        spoil(file)(workspace.curated(source.name))
        return summary

    monkeypatch.setattr(curate_module, "curate", lossy)
    result = factory.run("letters")
    assert not result.success
    assert sentence in str(failed_checks(result)["curated_corpus.nothing_vanishes"])
    assert factory.partitions("tagged_corpus") == set()


def test_a_row_that_vanished_in_tagging_stops_the_run(
    factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vipolyqwen_core.corpus import tagging

    factory.write("letters", 6)
    sound = tagging.tag

    def lossy(source, processing, backbone, workspace):
        summary = sound(source, processing, backbone, workspace)
        spoil("pairs.parquet")(workspace.tagged(source.name))
        return summary

    monkeypatch.setattr(tagging, "tag", lossy)
    result = factory.run("letters")
    assert not result.success
    assert failed_checks(result)["tagged_corpus.nothing_vanishes"] == "6 pairs in, 5 out, 0 in the ledger"
    assert factory.partitions("validated_corpus") == set()


def test_a_critical_suite_of_ones_own_stops_the_source_and_a_warning_does_not(factory: Factory) -> None:
    factory.write("letters", 6)
    manifest = factory.folder / "manifest.yaml"
    suite = {
        "expectations": [
            {"expectation": "ExpectTableRowCountToBeBetween", "min_value": 100, "severity": "warning"}
        ]
    }
    (factory.folder / "long.yaml").write_text(yaml.safe_dump(suite))
    manifest.write_text(manifest.read_text() + "expectations: [long.yaml]\n")
    warned = factory.run("letters")
    assert warned.success
    found = {check.check_name: check for check in warned.get_asset_check_evaluations()}["own_long"]
    assert not found.passed
    assert found.severity is dg.AssetCheckSeverity.WARN

    suite["expectations"][0]["severity"] = "critical"
    (factory.folder / "long.yaml").write_text(yaml.safe_dump(suite))
    stopped = factory.run("letters")
    assert not stopped.success
    assert set(failed_checks(stopped)) == {"validated_corpus.own_long"}

    (event,) = stopped.asset_materializations_for_node("validated_corpus")
    assert event.metadata["rejects by reason"].value == "nothing was rejected"
    refused = Path(str(event.metadata["folder"].value))
    assert pl.read_parquet(refused / "pairs.parquet").height == 6
    shutil.rmtree(refused)
    again = factory.run("letters")
    assert not reused(again, "validated_corpus")
    assert set(failed_checks(again)) == {"validated_corpus.own_long"}


LAUNCH = """
mutation Launch($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""
"""What the button `Launch backfill` of the UI sends."""


@pytest.mark.slow
def test_a_backfill_as_the_ui_launches_it_runs_every_source(
    factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GraphQL adds it, the daemons' own loops submit and start its runs, each a process."""
    from dagster._core.execution.backfill import BulkActionStatus
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import ModuleTarget
    from dagster._daemon.backfill import execute_backfill_iteration
    from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon
    from dagster_graphql.test.utils import execute_dagster_graphql

    from orchestration.instance import open_instance

    for name in ("letters", "notes"):
        factory.write(name, 6)
    monkeypatch.setenv("VIPOLYQWEN_HOME", str(factory.place.home))
    monkeypatch.setenv("VIPOLYQWEN_SOURCES", str(factory.folder / "manifest.yaml"))
    monkeypatch.setenv("VIPOLYQWEN_RECIPE", "demo")
    monkeypatch.setenv("DAGSTER_HOME", str(factory.place.dagster_home))
    monkeypatch.setenv(
        "PYTHONPATH", f"{Path(__file__).parents[2]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    )
    target = ModuleTarget(
        module_name="orchestration.definitions",
        attribute=None,
        working_directory=None,
        location_name="factory",
    )
    with (
        open_instance(factory.place) as instance,
        WorkspaceProcessContext(instance, target) as process_context,
    ):
        queue = QueuedRunCoordinatorDaemon(interval_seconds=1)
        request = process_context.create_request_context()
        params = {
            "assetSelection": [{"path": [stage]} for stage in STAGES],
            "partitionNames": ["letters", "notes"],
        }
        answer = execute_dagster_graphql(request, LAUNCH, {"params": params}).data["launchPartitionBackfill"]
        assert answer["__typename"] == "LaunchBackfillSuccess", answer
        deadline = time.monotonic() + 300
        while instance.get_backfill(answer["backfillId"]).status == BulkActionStatus.REQUESTED:
            list(execute_backfill_iteration(process_context, logging.getLogger("backfill")))
            list(queue.run_iteration(process_context))
            assert time.monotonic() < deadline
            time.sleep(1)
        while not all(run.is_finished for run in instance.get_runs()):
            list(queue.run_iteration(process_context))
            assert time.monotonic() < deadline
            time.sleep(1)
        runs = instance.get_runs()
        assert {run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}
        assert {run.tags["dagster/partition"] for run in runs} == {"letters", "notes"}
        assert {run.tags[PROCESS_TAG].split(":")[3] for run in runs} == {run.run_id for run in runs}
        for stage in STAGES:
            assert instance.get_materialized_partitions(dg.AssetKey(stage)) == {"letters", "notes"}
