"""Sensors: what they fire for, and what they do not."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from uuid import uuid4

import dagster as dg
import fsspec
import pytest
import yaml
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

from orchestration import sensors
from orchestration.definitions import build_definitions
from orchestration.run_process import PROCESS_TAG, process_tags
from orchestration.sensors import MAX_TIMES, PAUSE_SECONDS, RELOAD, STATE_TAG
from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.corpus.tables import StageSummary
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


def tick(
    place: Workspace,
    sensor: str,
    instance: dg.DagsterInstance,
    cursor: str | None,
    loaded: dg.Definitions | None = None,
) -> dg.SensorResult:
    """One evaluation of a sensor, of a code location that was loaded earlier or of one that is loaded now."""
    definitions = loaded or build_definitions(place, str(place.home.parent / "manifest.yaml"), "demo")
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

    manifest = place.home.parent / "manifest.yaml"
    described = yaml.safe_load(manifest.read_text())
    described["sources"][1]["languages"] = ["vi"]
    manifest.write_text(yaml.safe_dump(described))
    fourth = tick(place, "changed_sources", instance, third.cursor)
    assert [request.partition_key for request in fourth.run_requests] == ["receipts"]


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


def test_a_storage_that_is_silent_keeps_no_other_source_waiting(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    instance, answers, state = dg.DagsterInstance.ephemeral(), threading.Event(), sensors.source_state
    first = tick(place, "changed_sources", instance, None)
    for name in ("letters", "receipts"):
        with (place.home.parent / f"{name}.jsonl").open("a") as file:
            file.write('{"data_type": "instruction", "input": "c", "output": "d"}\n')

    def silent(source: Source) -> str:
        if source.name == "letters":
            answers.wait()
        return state(source)

    monkeypatch.setattr(sensors, "source_state", silent)
    monkeypatch.setattr(sensors, "SECONDS_TO_LOOK", 1)
    try:
        second = tick(place, "changed_sources", instance, first.cursor)
    finally:
        answers.set()
    assert [request.partition_key for request in second.run_requests] == ["receipts"]
    assert "letters: no answer of the storage in 1 seconds" in capfd.readouterr().err
    third = tick(place, "changed_sources", instance, second.cursor)
    assert [request.partition_key for request in third.run_requests] == ["letters"]
    answers.clear()
    try:
        fourth = tick(place, "changed_sources", instance, third.cursor)
    finally:
        answers.set()
    assert fourth.run_requests == []
    fifth = tick(place, "changed_sources", instance, fourth.cursor)
    assert fifth.run_requests == []  # what it was before its silence is remembered


def test_a_mistake_of_ours_in_a_look_at_a_source_is_raised(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Source) -> str:
        raise KeyError(source.name)

    monkeypatch.setattr(sensors, "source_state", fail)
    with pytest.raises(KeyError, match="letters"):
        tick(place, "changed_sources", dg.DagsterInstance.ephemeral(), None)


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
    manifest.write_text(manifest.read_text().replace("mine.yaml", "mine.yaml, 'my_suites:chats'"))
    third = tick(place, "changed_sources", instance, second.cursor)
    assert [request.partition_key for request in third.run_requests] == ["letters", "receipts"]
    (folder / "mine.yaml").write_text("name: kh\u00e1c\nexpectations: []\n", encoding="latin-1")
    fourth = tick(place, "changed_sources", instance, third.cursor)  # whose runs say that it is no UTF-8
    assert [request.partition_key for request in fourth.run_requests] == ["letters", "receipts"]


def test_the_model_waits_until_every_source_is_accepted(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance, closed = dg.DagsterInstance.ephemeral(), []
    monkeypatch.setattr(sensors, "close_interrupted_runs", lambda of: closed.append(of) or [])
    accept(place, "letters", "1")
    waiting = tick(place, "accepted_data", instance, None)
    assert waiting.skip_message == "not accepted yet: receipts"
    assert closed == [instance]  # one that was killed may be what it waits for
    monkeypatch.undo()

    accept(place, "receipts", "1")
    ready = tick(place, "accepted_data", instance, None)
    assert len(ready.run_requests) == 1
    assert tick(place, "accepted_data", instance, ready.cursor).run_requests == []

    accept(place, "letters", "2")
    assert len(tick(place, "accepted_data", instance, ready.cursor).run_requests) == 1


@pytest.mark.parametrize("change", [{"weight": 2.0}, {"off_limits": True}, {}], ids=str)
def test_the_model_is_trained_anew_where_the_manifest_changes_the_use_of_a_source(
    place: Workspace, change: dict[str, object]
) -> None:
    for source in ("letters", "receipts"):
        accept(place, source, "1")
    instance = dg.DagsterInstance.ephemeral()
    first = tick(place, "accepted_data", instance, None)
    manifest = place.home.parent / "manifest.yaml"
    described = yaml.safe_load(manifest.read_text())
    described["sources"][0] |= change
    if not change:  # but another place
        described["sources"].reverse()
    manifest.write_text(yaml.safe_dump(described))
    second = tick(place, "accepted_data", instance, first.cursor)
    assert len(second.run_requests) == 1
    assert tick(place, "accepted_data", instance, second.cursor).run_requests == []


def test_pictures_with_other_paths_are_exported_anew(place: Workspace) -> None:
    """Their rows are the same, and so is the accepted version."""

    def accept_pictures(version: int, uuid: str | None = None) -> None:
        images = {"path": str(place.images("receipts")), "version": version, "uuid": uuid}
        details = {"images": images}
        folder = place.validated("receipts") / "1"
        folder.mkdir(exist_ok=True)
        StageSummary("validated", "", "1", 1, 1, {}, details=details).write(folder)

    instance = dg.DagsterInstance.ephemeral()
    for source in ("letters", "receipts"):
        accept(place, source, "1")
    accept_pictures(1)
    first = tick(place, "accepted_data", instance, None)
    assert len(first.run_requests) == 1
    assert tick(place, "accepted_data", instance, first.cursor).run_requests == []
    accept_pictures(2)
    assert len(tick(place, "accepted_data", instance, first.cursor).run_requests) == 1
    accept_pictures(1, "of a store that was deleted and counts anew")
    assert len(tick(place, "accepted_data", instance, first.cursor).run_requests) == 1


def test_the_model_waits_for_runs_of_corpus(place: Workspace) -> None:
    for source in ("letters", "receipts"):
        accept(place, source, "1")

    @dg.job
    def corpus() -> None: ...

    instance = dg.DagsterInstance.ephemeral()
    run = instance.create_run_for_job(corpus)
    busy = tick(place, "accepted_data", instance, None)
    assert busy.skip_message == f"waiting for run {run.run_id[:8]} of corpus, which is under way"

    instance.report_run_failed(run)
    assert len(tick(place, "accepted_data", instance, busy.cursor).run_requests) == 1


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING])
def test_the_model_waits_for_itself_and_no_new_data_is_lost(
    place: Workspace, status: dg.DagsterRunStatus
) -> None:
    for source in ("letters", "receipts"):
        accept(place, source, "1")
    instance = dg.DagsterInstance.ephemeral()
    first = tick(place, "accepted_data", instance, None)
    run = launch(instance, "model", first, status)

    accept(place, "letters", "2")
    busy = tick(place, "accepted_data", instance, first.cursor)
    assert busy.run_requests == []
    assert busy.skip_message == f"waiting for run {run.run_id[:8]} of model, which is under way"
    assert busy.cursor in (None, first.cursor)

    instance.report_run_canceled(run)
    assert len(tick(place, "accepted_data", instance, first.cursor).run_requests) == 1


def test_the_model_waits_for_runs_that_wait_themselves(place: Workspace) -> None:
    for source in ("letters", "receipts"):
        accept(place, source, "1")
    instance = dg.DagsterInstance.ephemeral()
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("factory"), "factory")
    instance.create_run_for_job(
        empty_job("corpus"),
        status=dg.DagsterRunStatus.QUEUED,
        remote_job_origin=RemoteJobOrigin(repository, "corpus"),
    )
    assert tick(place, "accepted_data", instance, None).run_requests == []


def test_a_dead_run_of_corpus_keeps_no_model_waiting(place: Workspace) -> None:
    for source in ("letters", "receipts"):
        accept(place, source, "1")
    instance, run_id = dg.DagsterInstance.ephemeral(), str(uuid4())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    tags = process_tags(run_id)
    tags[PROCESS_TAG] = f"{ended.pid}:{tags[PROCESS_TAG].partition(':')[2]}"
    instance.create_run_for_job(
        empty_job("corpus"), run_id=run_id, tags=tags, status=dg.DagsterRunStatus.STARTED
    )
    assert len(tick(place, "accepted_data", instance, None).run_requests) == 1
    assert instance.get_run_by_id(run_id).status == dg.DagsterRunStatus.FAILURE


def test_a_source_that_goes_back_to_an_earlier_state_is_curated_again(place: Workspace) -> None:
    """Dagster passes over a request whose key it has seen, so none may carry one."""
    instance, file = dg.DagsterInstance.ephemeral(), place.home.parent / "letters.jsonl"
    content, times = file.read_text(), file.stat()
    seen = [tick(place, "changed_sources", instance, None)]
    for text in (content * 2, content):
        file.write_text(text)
        if text == content:
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        seen.append(tick(place, "changed_sources", instance, seen[-1].cursor))
    states = [
        request.tags[STATE_TAG]
        for result in seen
        for request in result.run_requests
        if request.partition_key == "letters"
    ]
    assert len(states) == 3
    assert states[0] == states[2] != states[1]
    assert {request.run_key for result in seen for request in result.run_requests} == {None}


@pytest.mark.parametrize(("sensor", "job"), [("changed_sources", "corpus"), ("accepted_data", "model")])
def test_a_run_that_failed_is_asked_for_again_a_few_times(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, sensor: str, job: str
) -> None:
    for source in ("letters", "receipts"):
        accept(place, source, "1")
    instance, cursor, asked = dg.DagsterInstance.ephemeral(), None, 0
    for _ in range(MAX_TIMES + 2):
        result = tick(place, sensor, instance, cursor)
        cursor = result.cursor
        if result.run_requests:
            asked += 1
            instance.report_run_failed(launch(instance, job, result, dg.DagsterRunStatus.STARTED))
            for _ in range(MAX_TIMES):  # not at once, and ticks in between do not count
                quiet = tick(place, sensor, instance, cursor)
                assert quiet.run_requests == []
                cursor = quiet.cursor or cursor
        later = time.time() + asked * (PAUSE_SECONDS + 1)
        monkeypatch.setattr("orchestration.sensors.time.time", lambda later=later: later)
    assert asked == MAX_TIMES


def test_only_the_source_whose_run_failed_is_asked_for_again(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = dg.DagsterInstance.ephemeral()
    first = tick(place, "changed_sources", instance, None)
    for request, status in zip(first.run_requests, ("FAILURE", "SUCCESS"), strict=True):
        instance.create_run_for_job(
            empty_job("corpus"), tags=request.tags, status=dg.DagsterRunStatus(status)
        )
    later = time.time() + PAUSE_SECONDS + 1
    monkeypatch.setattr("orchestration.sensors.time.time", lambda: later)
    again = tick(place, "changed_sources", instance, first.cursor)
    assert [request.partition_key for request in again.run_requests] == ["letters"]


def test_a_run_that_failed_by_a_clock_that_was_ahead_is_asked_for_again(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = dg.DagsterInstance.ephemeral()
    first = tick(place, "changed_sources", instance, None)
    launch(instance, "corpus", first, dg.DagsterRunStatus.FAILURE)
    earlier = time.time() - 86_400
    monkeypatch.setattr("orchestration.sensors.time.time", lambda: earlier)
    assert tick(place, "changed_sources", instance, first.cursor).run_requests


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.CANCELED])
def test_a_run_that_went_well_or_was_cancelled_is_not_asked_for_again(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, status: dg.DagsterRunStatus
) -> None:
    instance = dg.DagsterInstance.ephemeral()
    first = tick(place, "changed_sources", instance, None)
    launch(instance, "corpus", first, status)
    later = time.time() + 10 * PAUSE_SECONDS
    monkeypatch.setattr("orchestration.sensors.time.time", lambda: later)
    assert tick(place, "changed_sources", instance, first.cursor).run_requests == []


def test_a_source_that_is_new_in_the_manifest_stops_no_other_and_asks_for_a_reload(place: Workspace) -> None:
    instance, manifest = dg.DagsterInstance.ephemeral(), place.home.parent / "manifest.yaml"
    loaded = build_definitions(place, str(manifest), "demo")
    first = tick(place, "changed_sources", instance, None, loaded)
    described = yaml.safe_load(manifest.read_text())
    described["sources"].append({"name": "added", "format": "owner_jsonl", "paths": "letters.jsonl"})
    manifest.write_text(yaml.safe_dump(described))

    quiet = tick(place, "changed_sources", instance, first.cursor, loaded)
    assert quiet.run_requests == []
    assert quiet.skip_message == f"no source has changed; added: {RELOAD}"

    with (place.home.parent / "receipts.jsonl").open("a") as file:
        file.write('{"data_type": "instruction", "input": "c", "output": "d"}\n')
    second = tick(place, "changed_sources", instance, first.cursor, loaded)
    assert [request.partition_key for request in second.run_requests] == ["receipts"]
    assert tick(place, "accepted_data", instance, None, loaded).skip_message == f"added: {RELOAD}"

    reloaded = tick(place, "changed_sources", instance, second.cursor)
    assert [request.partition_key for request in reloaded.run_requests] == ["added"]


def test_a_source_that_comes_back_to_the_manifest_is_curated_again(place: Workspace) -> None:
    instance, manifest = dg.DagsterInstance.ephemeral(), place.home.parent / "manifest.yaml"
    whole, cursor = manifest.read_text(), tick(place, "changed_sources", instance, None).cursor
    manifest.write_text(yaml.safe_dump({"sources": yaml.safe_load(whole)["sources"][:1]}))
    cursor = tick(place, "changed_sources", instance, cursor).cursor
    manifest.write_text(whole)
    again = tick(place, "changed_sources", instance, cursor)
    assert [request.partition_key for request in again.run_requests] == ["receipts"]


def launch(
    instance: dg.DagsterInstance, job: str, result: dg.SensorResult, status: dg.DagsterRunStatus
) -> dg.DagsterRun:
    """The runs that a tick asked for, in a state of theirs; the last of them."""
    for request in result.run_requests:
        run = instance.create_run_for_job(empty_job(job), tags=request.tags, status=status)
    return run


def empty_job(name: str) -> dg.JobDefinition:
    @dg.job(name=name)
    def empty() -> None: ...

    return empty
