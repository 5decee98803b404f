"""Wherever an export is killed, or its disk is full, the next one goes on, and search stays right."""

import itertools
import os
from pathlib import Path
from typing import Any

import lancedb
import pyarrow.parquet as pq
import pytest
from lancedb.db import LanceDBConnection
from lancedb.table import LanceTable

from tests.core.serving.conftest import SETTINGS, rows_of, run_export
from tests.core.small_training_set import SmallPair, some_pairs, write_training_set
from vipolyqwen_core.full_disk import told_of_full_disk
from vipolyqwen_core.serving import export as export_module
from vipolyqwen_core.serving import table_update
from vipolyqwen_core.serving.current_export import read_current
from vipolyqwen_core.serving.export import export
from vipolyqwen_core.serving.search import search
from vipolyqwen_core.serving.table_update import add_rows
from vipolyqwen_core.workspace import Workspace


def killed_at_rename(number: int, monkeypatch: pytest.MonkeyPatch, workspace: Workspace, model: Path) -> bool:
    """Export another version and die before the rename of that number; whether there was one."""
    renames = itertools.count()
    replace_file = os.replace

    def dies(source: Any, target: Any) -> None:
        if next(renames) == number:
            raise KeyboardInterrupt
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dies)
        try:
            export(workspace.training_set, model, "2", workspace, SETTINGS)
        except KeyboardInterrupt:
            return True
    return False


def test_wherever_a_swap_is_killed_search_encodes_with_the_model_of_the_table(
    tmp_path: Path, tiny_model_dir: Path, model_of_the_same_shape: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [SmallPair(f"question {i}", f"answer {i}") for i in range(4)]
    for number in itertools.count():
        workspace = Workspace(tmp_path / str(number))
        run_export(workspace, tiny_model_dir, pairs=pairs)
        killed = killed_at_rename(number, monkeypatch, workspace, model_of_the_same_shape)
        if (workspace.lancedb / "embeddings.lance").is_dir():
            (hit,) = search(workspace, "question 2", top=1)
            assert (hit.text, hit.score) == ("question 2", pytest.approx(1, abs=1e-5)), number
        else:  # where folders cannot be exchanged there is no table between the two renames of a swap
            with pytest.raises(ValueError, match="nothing was exported yet"):
                search(workspace, "question 2")
        again = export(workspace.training_set, model_of_the_same_shape, "2", workspace, SETTINGS)
        assert read_current(workspace).model_version == "2"
        assert search(workspace, "question 2", top=1)[0].score == pytest.approx(1, abs=1e-5)
        if not killed:
            assert number > 2
            assert again.reused
            break


def test_wherever_a_first_export_is_killed_its_table_is_known_or_not_there(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in itertools.count():
        workspace = Workspace(tmp_path / str(number))
        write_training_set(workspace.training_set, [SmallPair("question", "answer")])
        killed = killed_at_rename(number, monkeypatch, workspace, tiny_model_dir)
        if workspace.lancedb.is_dir():
            assert read_current(workspace).model_version == "2", number
        if not killed:
            assert number > 2
            break


def test_going_back_after_a_kill_still_finds_the_stored_vectors(
    tmp_path: Path, tiny_model_dir: Path, other_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path)
    run_export(workspace, tiny_model_dir)
    run_export(workspace, other_model, "2")

    def dies(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LanceTable, "add", dies)
        with pytest.raises(KeyboardInterrupt):
            run_export(workspace, tiny_model_dir)
    assert (workspace.exports / "1" / export_module.STAGING).is_dir()
    summary = run_export(workspace, tiny_model_dir)
    assert (summary.encoded, summary.kept) == (0, 2 * len(some_pairs()))


def test_a_killed_export_goes_on_where_it_was(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path)
    calls = []

    def dies(table: Any, rows: Any, vectors: Any) -> None:
        calls.append(rows.num_rows)
        if len(calls) == 3:
            raise KeyboardInterrupt
        add_rows(table, rows, vectors)

    monkeypatch.setattr(table_update, "add_rows", dies)
    with pytest.raises(KeyboardInterrupt):
        run_export(workspace, tiny_model_dir)
    with pytest.raises(ValueError, match="nothing was exported yet"):
        search(workspace, "anything")
    monkeypatch.setattr(table_update, "add_rows", add_rows)
    summary = run_export(workspace, tiny_model_dir)
    assert summary.encoded == 2 * len(some_pairs()) - sum(calls[:2])
    assert summary.rows == 2 * len(some_pairs())


def test_a_full_disk_is_named_and_the_export_goes_on_once_there_is_room(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise RuntimeError(
            "lance error: LanceError(IO): No space left on device (os error 28), /cargo/x.rs:2"
        )

    with monkeypatch.context() as patch:
        patch.setattr(LanceTable, "optimize", full)
        with pytest.raises(
            OSError, match=r"No space left on device; make room: .* goes on: '.*exports'"
        ) as told:
            run_export(workspace, tiny_model_dir)
    assert told.value.filename == str(workspace.exports)
    added = told_of_full_disk(told.value, workspace)  # by the command of the factory
    assert added.startswith("; free now: ")
    assert "Make room" not in added
    assert run_export(workspace, tiny_model_dir).encoded == 0


def test_a_disk_without_room_for_a_first_table_leaves_none_that_is_damaged(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path)

    def full(database: LanceDBConnection, name: str, **_: object) -> None:  # what Lance leaves behind then
        (Path(database.uri) / f"{name}.lance" / "_transactions").mkdir(parents=True)
        raise RuntimeError("lance error: LanceError(IO): No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(LanceDBConnection, "create_table", full)
        with pytest.raises(OSError, match=r"No space left on device; make room: .* goes on: '.*exports'"):
            run_export(workspace, tiny_model_dir)
    assert run_export(workspace, tiny_model_dir).rows == 2 * len(some_pairs())
    assert sorted(path.name for path in (workspace.exports / "1").iterdir()) == ["embeddings.parquet"]


def test_an_update_that_was_killed_loses_no_vector_and_leaves_no_row_behind(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path)
    pairs = [SmallPair(f"question {i}", f"answer {i}") for i in range(6)]
    run_export(workspace, tiny_model_dir, pairs=pairs)

    def dies(table: Any, row_ids: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(table_update, "delete_rows", dies)
    with pytest.raises(KeyboardInterrupt):
        run_export(workspace, tiny_model_dir, pairs=pairs[1:])
    assert {row["text"] for row in rows_of(workspace)} >= {"question 0", "question 1"}
    monkeypatch.undo()
    summary = run_export(workspace, tiny_model_dir, pairs=pairs[1:])
    assert (summary.encoded, summary.updated, summary.rows) == (0, 0, 10)
    assert len(rows_of(workspace)) == 10


@pytest.mark.parametrize("last_step", ["_index", "_write_parquet"])
def test_an_update_that_was_killed_behind_its_last_row_is_finished_by_the_next(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, last_step: str
) -> None:
    workspace = Workspace(tmp_path)
    pairs = [SmallPair(f"question {i}", f"answer {i}") for i in range(6)]
    run_export(workspace, tiny_model_dir, pairs=pairs[1:])

    def dies(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export_module, last_step, dies)
        with pytest.raises(KeyboardInterrupt):
            run_export(workspace, tiny_model_dir, pairs=pairs[:-1])
    summary = run_export(workspace, tiny_model_dir, pairs=pairs[:-1])
    assert summary.reused
    stored = {row["text"] for row in pq.read_table(summary.parquet, columns=["text"]).to_pylist()}
    assert stored == {row["text"] for row in rows_of(workspace)}
    table = lancedb.connect(workspace.lancedb).open_table("embeddings")
    (index,) = table.list_indices()
    assert table.index_stats(index.name).num_unindexed_rows == 0
    written = os.stat(summary.parquet).st_mtime_ns
    run_export(workspace, tiny_model_dir, pairs=pairs[:-1])
    assert os.stat(summary.parquet).st_mtime_ns == written
