"""What the schedules ask for."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._utils.schedules import schedule_execution_time_iterator

from orchestration.definitions import build_definitions
from orchestration.sensors import OTHER_SUITES
from vipolyqwen_core.workspace import Workspace


def test_sources_are_those_of_the_manifest_as_it_is_and_that_the_jobs_know(tmp_path: Path) -> None:
    def describe(*names: str) -> None:
        sources = [{"name": name, "format": "owner_jsonl", "paths": "rows.jsonl"} for name in names]
        manifest.write_text(yaml.safe_dump({"sources": sources}))

    manifest = tmp_path / "manifest.yaml"
    describe("letters", "receipts")
    loaded = build_definitions(Workspace(tmp_path / "home"), str(manifest), "demo")
    describe("receipts", "added")
    context = dg.build_schedule_context(
        scheduled_execution_time=datetime(2026, 1, 3, 22, tzinfo=UTC),
        resources=dict(loaded.resources or {}),
        repository_def=loaded.get_repository_def(),
    )
    asked = loaded.resolve_schedule_def("weekly_corpus").evaluate_tick(context).run_requests
    assert [(request.partition_key, request.run_key) for request in asked or ()] == [
        ("receipts", "2026-01-03:receipts")
    ]


@pytest.mark.parametrize(("before", "after"), [([], ["own.yaml"]), (["own.yaml"], []), (["own.yaml"],) * 2])
def test_no_run_of_corpus_is_asked_for_while_the_jobs_know_other_suites(
    tmp_path: Path, before: list[str], after: list[str]
) -> None:
    manifest = tmp_path / "manifest.yaml"
    source = {"name": "letters", "format": "owner_jsonl", "paths": "rows.jsonl"}
    (tmp_path / "rows.jsonl").write_text('{"data_type": "instruction", "input": "a", "output": "b"}\n')
    (tmp_path / "own.yaml").write_text("[]")

    def describe(suites: list[str]) -> None:
        manifest.write_text(yaml.safe_dump({"sources": [source], "expectations": suites}))

    describe(before)
    loaded = build_definitions(Workspace(tmp_path / "home"), str(manifest), "demo")
    describe(after)
    given = {"resources": dict(loaded.resources or {}), "repository_def": loaded.get_repository_def()}
    night = dg.build_schedule_context(scheduled_execution_time=datetime(2026, 1, 3, 22, tzinfo=UTC), **given)
    tick = dg.build_sensor_context(instance=dg.DagsterInstance.ephemeral(), **given)
    for asked in (
        loaded.resolve_schedule_def("weekly_corpus").evaluate_tick(night),
        loaded.resolve_sensor_def("changed_sources").evaluate_tick(tick),
    ):
        assert [request.partition_key for request in asked.run_requests or ()] == (
            ["letters"] if before == after else []
        )
        assert asked.skip_message == (None if before == after else OTHER_SUITES)


def test_the_model_is_trained_once_a_week_after_the_night_of_the_corpus(tmp_path: Path) -> None:
    loaded = build_definitions(Workspace(tmp_path), None, "demo")
    wednesday, weekend = datetime(2025, 12, 31, tzinfo=UTC).timestamp(), []
    for name in ("weekly_prune", "weekly_corpus", "weekly_model"):
        schedule = loaded.resolve_schedule_def(name)
        ticks = schedule_execution_time_iterator(wednesday, schedule.cron_schedule, "UTC")
        first, second = next(ticks), next(ticks)
        assert second - first == timedelta(weeks=1)
        weekend.append((schedule.job_name, f"{first:%a %H}"))
    assert weekend == [("prune", "Sat 21"), ("corpus", "Sat 22"), ("model", "Sun 02")]
