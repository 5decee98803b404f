"""The code location: quick to import, and the whole asset graph as a snapshot."""

import json
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

from orchestration.definitions import build_definitions
from orchestration.jobs import ASSET_KEYS
from vipolyqwen_core.workspace import Workspace

SNAPSHOT = Path(__file__).with_name("asset_graph.json")
SCHEDULES = ("weekly_prune", "weekly_corpus", "weekly_model")
SENSORS = ("changed_sources", "accepted_data", "failed_runs")


def manifest(folder: Path, *names: str) -> str:
    sources = [{"name": name, "format": "owner_jsonl", "paths": f"{name}.jsonl"} for name in names]
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump({"sources": sources}))
    return str(path)


@pytest.fixture
def definitions(tmp_path: Path) -> dg.Definitions:
    return build_definitions(Workspace(tmp_path), manifest(tmp_path, "letters", "receipts"), "demo")


def graph(definitions: dg.Definitions) -> dict[str, object]:
    """What a person sees of the graph."""
    assets = {}
    for asset in definitions.resolve_all_asset_specs():
        assets[asset.key.to_user_string()] = {
            "deps": sorted(dep.asset_key.to_user_string() for dep in asset.deps),
            "group": asset.group_name,
            "kinds": sorted(asset.kinds),
            "partitions": list(asset.partitions_def.get_partition_keys()) if asset.partitions_def else None,
        }
    checks = {}
    for check in definitions.asset_checks or ():
        for spec in check.check_specs:
            place = f"{spec.asset_key.to_user_string()}.{spec.name}"
            checks[place] = {"blocking": spec.blocking, "says": spec.description}
    jobs = {
        job.name: sorted(job.graph.node_dict)
        for job in (
            definitions.resolve_job_def(name)
            for name in ("corpus", "model", "rollback", "pooling_ablation", "prune")
        )
    }
    return {"assets": assets, "checks": checks, "jobs": jobs}


def test_the_asset_graph_is_as_recorded(definitions: dg.Definitions) -> None:
    """After a change that is meant: write what this prints into asset_graph.json."""
    shown = json.dumps(graph(definitions), indent=1, sort_keys=True)
    assert shown == SNAPSHOT.read_text().strip(), shown


def test_every_asset_is_described_and_belongs_to_a_job(definitions: dg.Definitions) -> None:
    specs = list(definitions.resolve_all_asset_specs())
    assert sorted(spec.key.to_user_string() for spec in specs) == sorted(ASSET_KEYS)
    assert all(spec.description for spec in specs)


def test_a_source_added_to_the_manifest_is_a_partition(tmp_path: Path) -> None:
    def partitions() -> list[str]:
        built = build_definitions(Workspace(tmp_path), str(tmp_path / "manifest.yaml"), "demo")
        definition = built.resolve_assets_def("validated_corpus").partitions_def
        assert definition is not None
        return list(definition.get_partition_keys())

    manifest(tmp_path, "letters")
    assert partitions() == ["letters"]
    manifest(tmp_path, "letters", "receipts")
    assert partitions() == ["letters", "receipts"]


def test_suites_of_ones_own_are_checks(tmp_path: Path) -> None:
    path = Path(manifest(tmp_path, "letters"))
    path.write_text(path.read_text() + "expectations: [suites/totals.yaml, my.suites:chats]\n")
    built = build_definitions(Workspace(tmp_path), str(path), "demo")
    names = {spec.name for check in built.asset_checks or () for spec in check.check_specs}
    assert {"own_totals", "own_chats", "suite_drift"} <= names


def test_a_wrong_manifest_is_refused_when_definitions_load(tmp_path: Path) -> None:
    path = tmp_path / "manifest.yaml"
    path.write_text("sources: [{name: a, format: song, paths: a.txt}]")
    with pytest.raises(ValueError, match=r"source 'a', key 'format'"):
        build_definitions(Workspace(tmp_path), str(path), "demo")


def test_nothing_runs_by_itself_until_it_is_turned_on(definitions: dg.Definitions) -> None:
    schedules = [
        definitions.resolve_schedule_def(name) for name in ("weekly_corpus", "weekly_model", "weekly_prune")
    ]
    sensors = [definitions.resolve_sensor_def(name) for name in SENSORS]
    assert {schedule.default_status for schedule in schedules} == {dg.DefaultScheduleStatus.STOPPED}
    assert {sensor.default_status for sensor in sensors} == {dg.DefaultSensorStatus.STOPPED}


def test_a_job_whose_process_was_lost_is_repeated_from_its_start(definitions: dg.Definitions) -> None:
    for job in ("corpus", "model"):
        assert definitions.resolve_job_def(job).run_tags["dagster/retry_strategy"] == "ALL_STEPS"


def test_schedules_have_the_time_zone_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def zones() -> set[str | None]:
        built = build_definitions(Workspace(tmp_path), None, "demo")
        return {built.resolve_schedule_def(name).execution_timezone for name in SCHEDULES}

    monkeypatch.delenv("VIPOLYQWEN_TIME_ZONE", raising=False)
    assert zones() == {"UTC"}
    monkeypatch.setenv("VIPOLYQWEN_TIME_ZONE", "Asia/Ho_Chi_Minh")
    assert zones() == {"Asia/Ho_Chi_Minh"}
    monkeypatch.setenv("VIPOLYQWEN_TIME_ZONE", "Saigon")
    with pytest.raises(ValueError, match="VIPOLYQWEN_TIME_ZONE: expected a name"):
        zones()


def test_the_demo_needs_no_files_to_load(tmp_path: Path) -> None:
    build_definitions(Workspace(tmp_path), None, "demo")
    assert list(tmp_path.iterdir()) == []


def test_importing_and_loading_takes_less_than_three_seconds(tmp_path: Path) -> None:
    """Time of the processor, so that a busy machine does not fail it."""
    program = (
        "import time; from orchestration.definitions import defs; defs()\n"
        "assert time.process_time() < 3, time.process_time()"
    )
    environment = {"PATH": "", "HOME": str(tmp_path), "VIPOLYQWEN_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
