"""The update of an export's table: what moved keeps its vector, and only what is gone is deleted."""

from dataclasses import replace
from pathlib import Path

import lancedb
import numpy as np
import pytest

from tests.core import small_training_set
from tests.core.serving.conftest import SETTINGS, rows_of, run_export
from tests.core.small_training_set import SmallPair, write_training_set
from vipolyqwen_core.serving import table_update
from vipolyqwen_core.serving.encoding_pool import EncodingPool
from vipolyqwen_core.serving.export import export_schema
from vipolyqwen_core.serving.exported_sides import ExportedSides
from vipolyqwen_core.serving.table_update import Snapshot, add_rows, delete_rows, update_table
from vipolyqwen_core.workspace import Workspace


def test_a_row_whose_language_is_another_one_now_says_so_and_keeps_its_vector(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    workspace = Workspace(tmp_path)
    pairs = [SmallPair(f"question {i}", f"answer {i}") for i in range(3)]
    run_export(workspace, tiny_model_dir, pairs=pairs)
    summary = run_export(workspace, tiny_model_dir, pairs=[replace(pairs[0], language="vi"), *pairs[1:]])
    assert (summary.encoded, summary.updated, summary.kept) == (0, 2, 4)
    languages = {row["text"]: row["language"] for row in rows_of(workspace)}
    assert (languages["question 0"], languages["answer 0"], languages["question 1"]) == ("vi", "vi", "en")


def test_a_row_whose_source_has_another_name_now_says_so_and_keeps_its_vector(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path)
    pairs = [SmallPair(f"question {i}", f"answer {i}") for i in range(3)]
    run_export(workspace, tiny_model_dir, pairs=pairs)
    monkeypatch.setattr(small_training_set, "SOURCE", "renamed")
    summary = run_export(workspace, tiny_model_dir, pairs=pairs)
    assert (summary.encoded, summary.updated) == (0, 6)
    assert {row["source"] for row in rows_of(workspace)} == {"renamed"}


@pytest.mark.parametrize(("at_once", "statements"), [(table_update.DELETED_AT_ONCE, 1), (50, 3)])
def test_rows_that_go_or_move_are_deleted_in_few_steps(
    tmp_path: Path,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    at_once: int,
    statements: int,
) -> None:
    monkeypatch.setattr(table_update, "DELETED_AT_ONCE", at_once)
    workspace = Workspace(tmp_path)
    folder, schema = workspace.lancedb, export_schema(tiny_model_dir, "1")
    pairs = [SmallPair(f"question {i}", f"answer {i}") for i in range(56)]
    write_training_set(workspace.training_set, pairs)
    table = lancedb.connect(folder).create_table("embeddings", schema=schema)
    rng = np.random.default_rng(0)
    vectors: dict[tuple[str, str], np.ndarray] = {}
    for block in ExportedSides(workspace.training_set).blocks():
        filled = rng.normal(size=(block.rows.num_rows, 64)).astype(np.float32)
        vectors |= zip(
            zip(block.rows["sample_id"].to_pylist(), block.rows["side"].to_pylist(), strict=True),
            filled,
            strict=True,
        )
        add_rows(table, block.rows, filled)
    before = table.version
    write_training_set(workspace.training_set, pairs[28:])
    update = update_table(
        table, ExportedSides(workspace.training_set), EncodingPool(tiny_model_dir, SETTINGS)
    )
    assert (update.deleted, update.updated, update.encoded) == (56, 56, 0)
    assert table.version - before == 8 + statements  # four moved blocks of two sides; then what had to go
    rows = table.to_arrow()
    assert rows.num_rows == 56
    for row in rows.to_pylist():
        assert np.array_equal(row["embedding"], vectors[row["sample_id"], row["side"]])


def test_a_set_that_is_built_anew_meanwhile_leaves_no_vector_of_another_row(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    workspace, schema = Workspace(tmp_path), export_schema(tiny_model_dir, "1")
    pairs = [SmallPair(f"question {i}", f"answer {i}") for i in range(8)]
    write_training_set(workspace.training_set, pairs)
    table = lancedb.connect(workspace.lancedb).create_table("embeddings", schema=schema)
    sides, pool = ExportedSides(workspace.training_set), EncodingPool(tiny_model_dir, SETTINGS)
    workspace.training_set.rename(tmp_path / "old")
    write_training_set(workspace.training_set, [*pairs[::-1], SmallPair("one more", "row")])
    with pytest.raises(ValueError, match=r"was built anew meanwhile.*again"):
        update_table(table, sides, pool)
    assert table.count_rows() == 0
    # a set whose files were opened before is read to its end as it was
    sides, blocks = ExportedSides(workspace.training_set), []
    for block in sides.blocks():
        blocks.append(pool.submit(block.sides, block.requests(np.arange(block.rows.num_rows))).result())
        if len(blocks) == 1:
            workspace.training_set.rename(tmp_path / "reversed")
            write_training_set(workspace.training_set, pairs)
    again = ExportedSides(tmp_path / "reversed").blocks()
    for found, block in zip(blocks, again, strict=True):
        whole = pool.submit(block.sides, block.requests(np.arange(block.rows.num_rows))).result()
        assert np.array_equal(found, whole)


def test_a_table_that_another_process_rewrote_meanwhile_is_not_touched(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    workspace = Workspace(tmp_path)
    run_export(workspace, tiny_model_dir, pairs=[SmallPair(f"question {i}", "yes") for i in range(6)])
    table = lancedb.connect(workspace.lancedb).open_table("embeddings")
    before = Snapshot(table)
    lancedb.connect(workspace.lancedb).open_table("embeddings").delete("side = 'query'")
    lancedb.connect(workspace.lancedb).open_table("embeddings").optimize()  # rows are packed anew
    standing = Snapshot(lancedb.connect(workspace.lancedb).open_table("embeddings")).row_ids[:1]
    for row_ids in (before.row_ids[:3], np.append(standing, before.row_ids[:3])):
        with pytest.raises(RuntimeError, match="rewritten by another process"):
            delete_rows(table, row_ids)
    assert len(rows_of(workspace)) == 6
