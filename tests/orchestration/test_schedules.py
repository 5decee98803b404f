"""What the schedules ask for."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import yaml
from dagster._utils.schedules import schedule_execution_time_iterator

from orchestration.definitions import build_definitions
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
