"""Pruning deletes what nothing reads again, and nothing else."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vipolyqwen_core.__main__ import app
from vipolyqwen_core.file_lock import file_lock
from vipolyqwen_core.pruning import leftovers, prune, unfinished
from vipolyqwen_core.serving.current_export import LOCK_FILE, STAGING, CurrentExport, link_current
from vipolyqwen_core.workspace import Workspace


def put(path: Path, num_bytes: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(num_bytes))
    return path


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Three runs, of which one has finished, and vectors of five versions, the second oldest in use."""
    workspace = Workspace(tmp_path / "home")
    for run in ("finished", "interrupted", "without_model"):
        put(workspace.runs / run / "checkpoints" / "step_2" / "__0_0.distcp", 1000)
        put(workspace.runs / run / "checkpoints" / "step_2" / "state.json", 24)
        put(workspace.runs / run / "metrics.jsonl")
    for run in ("finished", "without_model"):
        put(workspace.runs / run / "result.json")
    for run in ("finished", "interrupted"):
        put(workspace.runs / run / "model" / "config.json")
    for version in range(1, 6):
        path = put(workspace.exports / str(version) / "embeddings.parquet", 100)
        os.utime(path, (version, version))
        put(workspace.models / f"v{version}" / "config.json")
    in_use = workspace.exports / "2" / "embeddings.parquet"
    current = CurrentExport("2", str(workspace.models / "v2"), "digest", 1, str(in_use))
    workspace.lancedb.mkdir()
    current.write(workspace.lancedb, workspace)
    link_current(workspace)
    return workspace


def files(workspace: Workspace) -> set[str]:
    return {str(file.relative_to(workspace.home)) for file in workspace.home.rglob("*") if file.is_file()}


def test_a_finished_runs_checkpoints_and_vectors_of_earlier_versions_go(workspace: Workspace) -> None:
    before, found = files(workspace), leftovers(workspace)
    assert [(str(leftover.path.relative_to(workspace.home)), leftover.num_bytes) for leftover in found] == [
        ("runs/finished/checkpoints", 1024),
        ("exports/4/embeddings.parquet", 100),
        ("exports/3/embeddings.parquet", 100),
        ("exports/1/embeddings.parquet", 100),
    ]
    assert files(workspace) == before
    assert prune(found, workspace) == found
    assert before - files(workspace) == {
        "runs/finished/checkpoints/step_2/__0_0.distcp",
        "runs/finished/checkpoints/step_2/state.json",
        *(f"exports/{version}/embeddings.parquet" for version in (1, 3, 4)),
    }
    assert leftovers(workspace) == []


def test_what_a_run_may_go_on_from_is_told_and_kept(workspace: Workspace) -> None:
    kept = [leftover.path.parent.name for leftover in unfinished(workspace)]
    assert kept == ["interrupted", "without_model"]
    put(workspace.exports / "9" / STAGING / "embeddings.lance" / "data" / "1.lance", 70)
    assert [leftover.num_bytes for leftover in unfinished(workspace)] == [1024, 1024, 70]


def test_an_export_in_progress_keeps_the_vectors_that_it_starts_from(workspace: Workspace) -> None:
    (workspace.exports / "1" / STAGING).mkdir()
    assert [leftover.path.parent.name for leftover in leftovers(workspace)[1:]] == ["4", "3"]


def test_vectors_stay_while_an_export_works_also_where_they_were_found_before(workspace: Workspace) -> None:
    found = leftovers(workspace)
    assert [leftover.path.name for leftover in found] == ["checkpoints", *["embeddings.parquet"] * 3]
    with (workspace.exports / LOCK_FILE).open("a+") as file:
        file_lock(file)
        assert [leftover.path.name for leftover in leftovers(workspace)] == ["checkpoints"]
        assert [leftover.path.name for leftover in prune(found, workspace)] == ["checkpoints"]
    assert [leftover.path.parent.name for leftover in leftovers(workspace)] == ["4", "3", "1"]


def test_where_the_exported_table_is_gone_all_vectors_stay(workspace: Workspace) -> None:
    (workspace.lancedb / "current.json").unlink()
    assert [leftover.path.name for leftover in leftovers(workspace)] == ["checkpoints"]


@pytest.mark.parametrize(
    ("arguments", "answer", "deletes"), [([], "n", False), ([], "y", True), (["--yes"], "", True)]
)
def test_the_command_tells_what_it_deletes_and_asks(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, arguments: list[str], answer: str, deletes: bool
) -> None:
    monkeypatch.setenv("VIPOLYQWEN_HOME", str(workspace.home))
    before = files(workspace)
    told = CliRunner().invoke(app, ["prune", *arguments], input=answer)
    assert told.exit_code == 0, told.output
    assert (
        f"{workspace.runs / 'finished' / 'checkpoints'}: 1.0 kB, checkpoints of a finished run" in told.output
    )
    assert f"kept: {workspace.runs / 'interrupted' / 'checkpoints'}" in told.output
    assert ("1.3 kB were deleted." in told.output) == deletes
    assert (files(workspace) != before) == deletes
