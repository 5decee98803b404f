"""Sensors: what they fire for, and what they do not."""

import json
from pathlib import Path

import dagster as dg
import fsspec
import pytest
import yaml

from orchestration.definitions import build_definitions
from vipolyqwen_core.workspace import Workspace


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    """A workspace beside a manifest of two sources."""
    sources = []
    for name in ("letters", "receipts"):
        (tmp_path / f"{name}.jsonl").write_text('{"data_type": "instruction", "input": "a", "output": "b"}\n')
        sources.append({"name": name, "format": "owner_jsonl", "paths": f"{name}.jsonl"})
    (tmp_path / "manifest.yaml").write_text(yaml.safe_dump({"sources": sources}))
    return Workspace(tmp_path / "home")


def tick(place: Workspace, sensor: str, instance: dg.DagsterInstance, cursor: str | None) -> dg.SensorResult:
    """One evaluation of a sensor."""
    definitions = build_definitions(place, str(place.home.parent / "manifest.yaml"), "demo")
    definition = definitions.resolve_sensor_def(sensor)
    context = dg.build_sensor_context(
        instance=instance, cursor=cursor, definitions=definitions, resources=dict(definitions.resources or {})
    )
    return definition.evaluate_tick(context)


def accept(place: Workspace, source: str, version: str) -> None:
    folder = place.validated(source)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "accepted.json").write_text(json.dumps({"version": version}))


def test_only_changed_sources_are_curated_again(place: Workspace) -> None:
    instance = dg.DagsterInstance.ephemeral()
    first = tick(place, "changed_sources", instance, None)
    assert [request.partition_key for request in first.run_requests] == ["letters", "receipts"]

    assert tick(place, "changed_sources", instance, first.cursor).run_requests == []

    with (place.home.parent / "letters.jsonl").open("a") as file:
        file.write('{"data_type": "instruction", "input": "c", "output": "d"}\n')
    third = tick(place, "changed_sources", instance, first.cursor)
    assert [request.partition_key for request in third.run_requests] == ["letters"]


def test_a_source_whose_files_are_gone_keeps_no_other_waiting(place: Workspace) -> None:
    instance = dg.DagsterInstance.ephemeral()
    first = tick(place, "changed_sources", instance, None)
    (place.home.parent / "letters.jsonl").unlink()
    with (place.home.parent / "receipts.jsonl").open("a") as file:
        file.write('{"data_type": "instruction", "input": "c", "output": "d"}\n')
    second = tick(place, "changed_sources", instance, first.cursor)
    assert [request.partition_key for request in second.run_requests] == ["letters", "receipts"]
    assert tick(place, "changed_sources", instance, second.cursor).run_requests == []


def test_a_sensor_reads_no_file_and_a_source_that_fails_keeps_no_other_waiting(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/sensed/silent.jsonl", b"silent")
    memory.pipe_file("/sensed/failing.jsonl", b"failing")
    manifest = place.home.parent / "manifest.yaml"
    described = yaml.safe_load(manifest.read_text())
    for name in ("silent", "failing"):
        described["sources"].append(
            {"name": name, "format": "owner_jsonl", "paths": f"memory://sensed/{name}.jsonl"}
        )
    manifest.write_text(yaml.safe_dump(described))

    def info(self: object, path: str, **keys: object) -> dict[str, object]:
        if "failing" in path:
            raise LookupError("500, Internal Server Error")
        return {"name": path, "type": "file", "size": 6}

    def fail(*arguments: object, **keys: object) -> None:
        pytest.fail("the content was asked for")

    monkeypatch.setattr(type(memory), "info", info)
    monkeypatch.setattr(type(memory), "open", fail)
    instance = dg.DagsterInstance.ephemeral()
    first = tick(place, "changed_sources", instance, None)
    names = ["letters", "receipts", "silent", "failing"]
    assert [request.partition_key for request in first.run_requests] == names
    assert tick(place, "changed_sources", instance, first.cursor).run_requests == []


def test_suites_of_ones_own_that_change_ask_for_a_judgement(place: Workspace) -> None:
    instance, folder = dg.DagsterInstance.ephemeral(), place.home.parent
    manifest = folder / "manifest.yaml"
    manifest.write_text(manifest.read_text() + "expectations: [mine.yaml]\n")
    (folder / "mine.yaml").write_text("expectations: []\n")
    first = tick(place, "changed_sources", instance, None)
    assert tick(place, "changed_sources", instance, first.cursor).run_requests == []
    (folder / "mine.yaml").write_text("name: other\nexpectations: []\n")
    second = tick(place, "changed_sources", instance, first.cursor)
    assert [request.partition_key for request in second.run_requests] == ["letters", "receipts"]


def test_the_model_waits_until_every_source_is_accepted(place: Workspace) -> None:
    instance = dg.DagsterInstance.ephemeral()
    accept(place, "letters", "1")
    waiting = tick(place, "accepted_data", instance, None)
    assert waiting.skip_message == "not accepted yet: receipts"

    accept(place, "receipts", "1")
    ready = tick(place, "accepted_data", instance, None)
    assert len(ready.run_requests) == 1
    assert tick(place, "accepted_data", instance, ready.cursor).run_requests == []

    accept(place, "letters", "2")
    assert len(tick(place, "accepted_data", instance, ready.cursor).run_requests) == 1


def test_the_model_waits_for_runs_of_corpus(place: Workspace) -> None:
    for source in ("letters", "receipts"):
        accept(place, source, "1")

    @dg.job
    def corpus() -> None: ...

    instance = dg.DagsterInstance.ephemeral()
    run = instance.create_run_for_job(corpus)
    busy = tick(place, "accepted_data", instance, None)
    assert busy.skip_message == "waiting for the runs of corpus that are under way"

    instance.report_run_failed(run)
    assert len(tick(place, "accepted_data", instance, busy.cursor).run_requests) == 1
