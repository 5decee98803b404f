"""Export: the table holds what the training set holds, and only what is new is encoded."""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lancedb.table import LanceTable

from tests.core.serving.conftest import DAMAGES, SETTINGS, rows_of, run_export
from tests.core.small_training_set import SmallPair, picture, some_pairs, write_training_set
from tests.wrong_bytes import write_wrong_bytes
from vipolyqwen_core import ViPolyQwenEmbedder
from vipolyqwen_core.config import ExportSettings
from vipolyqwen_core.contract import EXPORT, Split, Turn
from vipolyqwen_core.file_lock import file_lock
from vipolyqwen_core.processing.processor import Item
from vipolyqwen_core.serving import export as export_module
from vipolyqwen_core.serving import exported_sides, table_update
from vipolyqwen_core.serving import search as search_module
from vipolyqwen_core.serving.current_export import read_current
from vipolyqwen_core.serving.export import LOCK_FILE, _vector_index, export
from vipolyqwen_core.serving.search import open_export, search
from vipolyqwen_core.serving.table_update import add_rows
from vipolyqwen_core.workspace import Workspace


def test_both_sides_of_every_pair_stand_in_table_and_parquet(workspace: Workspace) -> None:
    rows = rows_of(workspace)
    assert len(rows) == 2 * len(some_pairs())
    assert len({(row["sample_id"], row["side"]) for row in rows}) == len(rows)
    parquet = pq.read_table(workspace.exports / "1" / "embeddings.parquet")
    assert parquet.column_names == [column.name for column in EXPORT]
    assert sorted(parquet["sample_id"].to_pylist()) == sorted(row["sample_id"] for row in rows)
    assert {row["split"] for row in rows} == {"train", "eval"}


def test_a_row_says_what_was_encoded_and_where_it_comes_from(workspace: Workspace) -> None:
    by_text = {row["text"]: row for row in rows_of(workspace)}
    dialogue = by_text["user: Hello\nassistant: Hi, how can I help?\nCount to three"]
    assert (dialogue["side"], dialogue["prefix"], dialogue["origin"]) == ("query", None, "small.jsonl:49")
    (disc,) = [row for row in rows_of(workspace) if row["side"] == "target" and row["image_ids"]][:1]
    assert disc["origin"] == "pictures/3.png"
    two = next(row for row in rows_of(workspace) if len(row["image_ids"]) == 2)
    assert two["origin"].startswith("pictures/2")
    assert ", pictures/3" in two["origin"]
    assert disc["model_version"] == "1"


def test_vectors_are_those_of_everyday_use(workspace: Workspace, tiny_model_dir: Path) -> None:
    embedder = ViPolyQwenEmbedder.from_pretrained(tiny_model_dir)
    rows = rows_of(workspace)
    (dialogue,) = [row for row in rows if row["text"].startswith("user: ")]
    history = (Turn("user", "Hello"), Turn("assistant", "Hi, how can I help?"))
    told = embedder.encode_items([lambda: Item("Count to three", history=history)], 1024)
    assert np.allclose(dialogue["embedding"], told[0], atol=2e-6)
    rows.remove(dialogue)
    shown = [
        [picture(int(number)) for number in re.findall(r"pictures/(\d+)\.png", row["origin"])] for row in rows
    ]
    expected = embedder.encode([row["text"] for row in rows], images=shown)
    assert np.allclose([row["embedding"] for row in rows], expected, atol=2e-6)


def test_nothing_is_encoded_twice(workspace: Workspace, tiny_model_dir: Path) -> None:
    before = os.stat(workspace.exports / "1" / "embeddings.parquet").st_mtime_ns
    summary = export(workspace.training_set, tiny_model_dir, "1", workspace, SETTINGS)
    assert summary.reused
    assert (summary.kept, summary.encoded) == (2 * len(some_pairs()), 0)
    assert os.stat(workspace.exports / "1" / "embeddings.parquet").st_mtime_ns == before


def test_the_export_follows_the_corpus(tmp_path: Path, tiny_model_dir: Path) -> None:
    workspace = Workspace(tmp_path)
    pairs = [SmallPair(f"question {i}", f"answer {i}") for i in range(6)]
    run_export(workspace, tiny_model_dir, pairs=pairs)
    old = {(row["text"]): row["embedding"] for row in rows_of(workspace)}
    new = [
        SmallPair("new question", "answer 3"),
        SmallPair("new question", "new answer"),
        SmallPair("newer question", "new answer"),
    ]
    changed = [replace(pairs[0], split=Split.TRAIN), *pairs[2:], *new]
    summary = run_export(workspace, tiny_model_dir, pairs=changed)
    # one pair is gone, three are new; one changed its split, and those behind it moved by a line
    assert (summary.deleted, summary.encoded, summary.updated, summary.kept) == (2, 6, 10, 0)
    rows = {(row["text"], row["side"]): row for row in rows_of(workspace)}
    assert ("question 1", "query") not in rows
    assert rows["question 0", "query"]["split"] == "train"
    assert rows["question 2", "query"]["origin"] == "small.jsonl:2"
    assert rows["question 2", "query"]["embedding"] == old["question 2"]
    found = rows_of(workspace)
    expected = ViPolyQwenEmbedder.from_pretrained(tiny_model_dir).encode([row["text"] for row in found])
    assert np.allclose([row["embedding"] for row in found], expected, atol=2e-6)
    assert summary.rows == len(found) == 16
    assert pq.read_table(summary.parquet).num_rows == 16


def test_where_pairs_only_went_the_parquet_file_loses_them_too(tmp_path: Path, tiny_model_dir: Path) -> None:
    workspace = Workspace(tmp_path)
    pairs = [SmallPair(f"question {i}", f"answer {i}") for i in range(3)]
    run_export(workspace, tiny_model_dir, pairs=pairs)
    summary = run_export(workspace, tiny_model_dir, pairs=pairs[:-1])
    assert (summary.deleted, summary.encoded, summary.updated, summary.reused) == (2, 0, 0, False)
    assert pq.read_table(summary.parquet).num_rows == 4


def test_rows_that_stand_there_again_go_from_table_and_parquet(
    workspace: Workspace, tiny_model_dir: Path
) -> None:
    before = rows_of(workspace)
    parquet = workspace.exports / "1" / "embeddings.parquet"
    _, table = open_export(workspace)
    table.add(table.to_arrow().slice(0, 5))
    stored = pq.read_table(parquet)
    pq.write_table(pa.concat_tables([stored, stored.slice(0, 5)]), parquet)
    summary = export(workspace.training_set, tiny_model_dir, "1", workspace, SETTINGS)
    assert (summary.encoded, summary.updated, summary.deleted, summary.rows) == (0, 0, 5, len(before))
    assert rows_of(workspace) == before
    assert pq.read_table(parquet).to_pylist() == before


def test_another_version_is_swapped_in_at_the_end(
    tmp_path: Path, tiny_model_dir: Path, other_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path)
    run_export(workspace, tiny_model_dir)
    seen = []

    def spied(table: Any, rows: Any, vectors: Any) -> None:
        seen.append((read_current(workspace).model_version, len(rows_of(workspace)[0]["embedding"])))
        add_rows(table, rows, vectors)

    monkeypatch.setattr(table_update, "add_rows", spied)
    summary = run_export(workspace, other_model, "2")
    assert set(seen) == {("1", 64)}
    assert (summary.encoded, summary.kept) == (2 * len(some_pairs()), 0)
    assert read_current(workspace).model_version == "2"
    assert read_current(workspace).model_directory() == other_model.resolve()
    assert len(rows_of(workspace)[0]["embedding"]) == 32
    assert (workspace.exports / "1" / "embeddings.parquet").is_file()
    assert not (workspace.exports / "2" / "staging").exists()


def test_a_table_of_another_model_than_the_one_that_is_named_is_not_searched(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    workspace = Workspace(tmp_path)
    run_export(workspace, tiny_model_dir, pairs=[SmallPair("a question", "an answer")])
    replace(read_current(workspace), model_digest="0" * 32).write(workspace.lancedb, workspace)
    with pytest.raises(ValueError, match="made by another model than version 1"):
        search(workspace, "a question")


def test_a_directory_that_holds_another_model_by_now_answers_no_search(
    tmp_path: Path, tiny_model_dir: Path, model_of_the_same_shape: Path
) -> None:
    """One of the user's own, which a later training overwrote: its vectors are not those of the table."""
    workspace, model = Workspace(tmp_path / "home"), tmp_path / "model"
    shutil.copytree(tiny_model_dir, model)
    run_export(workspace, model, pairs=[SmallPair("a question", "an answer")])
    assert search(workspace, "a question")[0].score == pytest.approx(1, abs=1e-5)
    shutil.copytree(model_of_the_same_shape, model, dirs_exist_ok=True)
    search_module._embedder.cache_clear()
    with pytest.raises(ValueError, match="holds another model by now than the one that made the table"):
        search(workspace, "a question")


def test_going_back_to_a_version_encodes_nothing_again(
    tmp_path: Path, tiny_model_dir: Path, other_model: Path
) -> None:
    workspace = Workspace(tmp_path)
    run_export(workspace, tiny_model_dir)
    run_export(workspace, other_model, "2")
    summary = run_export(workspace, tiny_model_dir)
    assert (summary.encoded, summary.reused) == (0, False)
    assert len(rows_of(workspace)[0]["embedding"]) == 64
    assert search(workspace, "Say number 3", top=1)[0].score == pytest.approx(1, abs=1e-5)


def test_replaced_versions_of_the_table_go_when_nobody_can_need_them(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path)
    pairs = [SmallPair(f"question {i}", f"answer {i}") for i in range(4)]
    run_export(workspace, tiny_model_dir, pairs=pairs)
    run_export(workspace, tiny_model_dir, pairs=pairs[1:])

    def versions() -> set[int]:
        table = lancedb.connect(workspace.lancedb).open_table("embeddings")
        return {version["version"] for version in table.list_versions()}

    replaced = versions()
    assert len(replaced) > 1
    monkeypatch.setattr(export_module, "KEPT_VERSIONS", timedelta(milliseconds=1))
    assert run_export(workspace, tiny_model_dir, pairs=pairs[1:]).reused
    assert versions() == {max(replaced)}  # also where nothing has changed since
    run_export(workspace, tiny_model_dir, pairs=pairs[2:])
    assert versions()
    assert not versions() & replaced  # those of the last export itself may be younger than a millisecond


def test_a_table_that_was_made_aside_holds_its_vectors_once(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has read it yet: the small files that were merged into large ones need not wait."""
    monkeypatch.setattr(exported_sides, "BLOCK_ROWS", 8)
    workspace = Workspace(tmp_path)
    pairs = [SmallPair(f"question {i}", f"answer {i}") for i in range(40)]
    run_export(workspace, tiny_model_dir, pairs=pairs)
    table = lancedb.connect(workspace.lancedb).open_table("embeddings")
    in_use = {file.path for fragment in table.to_lance().get_fragments() for file in fragment.data_files()}
    assert {file.name for file in (workspace.lancedb / "embeddings.lance/data").iterdir()} == in_use
    assert len(in_use) == 1


def test_a_version_whose_files_changed_is_another_model(
    tmp_path: Path, tiny_model_dir: Path, other_model: Path
) -> None:
    workspace = Workspace(tmp_path)
    run_export(workspace, tiny_model_dir)
    assert run_export(workspace, other_model, "1").encoded == 2 * len(some_pairs())


def test_a_large_table_gets_a_vector_index_and_a_filter_finds_what_lies_in_any_partition(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "PARTITION_ROWS", 10)
    monkeypatch.setattr(search_module, "PARTITION_ROWS", 10)
    monkeypatch.setattr(search_module, "LEAST_PROBED", 1)
    workspace = Workspace(tmp_path)
    pairs = [SmallPair(f"question {i}", f"answer {i}") for i in range(150)]
    write_training_set(workspace.training_set, pairs)
    settings = ExportSettings(index_min_rows=300)
    assert export(workspace.training_set, tiny_model_dir, "1", workspace, settings).indexed
    assert search(workspace, "question 77", top=1)[0].text == "question 77"
    for i in range(0, 150, 10):
        (hit,) = search(workspace, "question 77", top=1, where=f"text = 'answer {i}'")
        assert hit.text == f"answer {i}"


def test_an_index_is_made_anew_where_most_rows_are_new_and_completed_where_few_are(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    create = LanceTable.create_index

    def spied(table: Any, column: str, **keys: Any) -> None:
        made.append(column)
        create(table, column, **keys)

    monkeypatch.setattr(LanceTable, "create_index", spied)
    workspace, settings = Workspace(tmp_path), ExportSettings(index_min_rows=40)
    for first, last, expected in (
        (0, 15, ["text"]),
        (0, 21, ["embedding"]),
        (0, 30, []),
        (25, 60, ["text", "embedding"]),
    ):
        pairs = [SmallPair(f"question {i}", f"answer {i}") for i in range(first, last)]
        write_training_set(workspace.training_set, pairs)
        export(workspace.training_set, tiny_model_dir, "1", workspace, settings)
        assert made == expected
        table = lancedb.connect(workspace.lancedb).open_table("embeddings")
        assert all(table.index_stats(index.name).num_unindexed_rows == 0 for index in table.list_indices())
        made.clear()


def test_an_index_that_lacks_is_made_though_no_row_has_changed(tmp_path: Path, tiny_model_dir: Path) -> None:
    """Killed between the two indices, or a limit that is lower now."""
    workspace = Workspace(tmp_path)
    write_training_set(workspace.training_set, [SmallPair(f"query {i}", f"target {i}") for i in range(150)])
    for lower_limit, expected in ((301, False), (300, True)):
        settings = ExportSettings(index_min_rows=lower_limit)
        summary = export(workspace.training_set, tiny_model_dir, "1", workspace, settings)
        assert (summary.indexed, summary.reused) == (expected, False)
    assert export(workspace.training_set, tiny_model_dir, "1", workspace, settings).reused


@pytest.mark.parametrize(("dim", "kind"), [(24, "IVF_RQ"), (20, "IVF_SQ")])
def test_vectors_of_any_dimension_are_indexed(tmp_path: Path, dim: int, kind: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(300, dim)).astype(np.float32)
    rows = pa.table({"embedding": pa.FixedSizeListArray.from_arrays(vectors.ravel(), dim)})
    table = lancedb.connect(tmp_path).create_table("embeddings", rows)
    table.create_index("embedding", config=_vector_index(dim))
    (index,) = table.list_indices()
    assert table.index_stats(index.name).index_type == kind
    (found,) = table.search(vectors[7]).distance_type("cosine").refine_factor(10).limit(1).to_list()
    assert found["embedding"] == pytest.approx(vectors[7].tolist())


def test_an_export_beside_another_is_refused(workspace: Workspace, tiny_model_dir: Path) -> None:
    with (workspace.exports / LOCK_FILE).open("a+", encoding="utf-8") as other:
        assert file_lock(other) is None
        with pytest.raises(ValueError, match=f"process {os.getpid()} exports into {workspace.exports}: wait"):
            export(workspace.training_set, tiny_model_dir, "2", workspace, SETTINGS)
        assert not (workspace.exports / "2").exists()
    assert export(workspace.training_set, tiny_model_dir, "1", workspace, SETTINGS).reused


@pytest.mark.parametrize("version", ["lancedb", "1/2", "../1", ".1", ""])
def test_a_version_that_can_name_no_folder_is_refused(
    tmp_path: Path, tiny_model_dir: Path, version: str
) -> None:
    with pytest.raises(ValueError, match="cannot name a folder"):
        export(tmp_path, tiny_model_dir, version, Workspace(tmp_path), ExportSettings())


def test_an_export_without_training_set_or_model_is_refused(tmp_path: Path, tiny_model_dir: Path) -> None:
    workspace = Workspace(tmp_path)
    with pytest.raises(ValueError, match="no training set"):
        export(workspace.training_set, tiny_model_dir, "1", workspace, SETTINGS)
    with pytest.raises(ValueError, match="is no model directory"):
        export(workspace.training_set, tmp_path, "1", workspace, SETTINGS)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_is_named_and_made_anew_from_the_parquet_file(
    tmp_path: Path, tiny_model_dir: Path, damage: Callable[[Path], None]
) -> None:
    workspace = Workspace(tmp_path)
    rows = run_export(workspace, tiny_model_dir).rows
    damage(workspace.lancedb / f"{search_module.TABLE}.lance")
    with pytest.raises(ValueError, match=rf"the table .*{search_module.TABLE}\.lance cannot be read; delete"):
        run_export(workspace, tiny_model_dir)
    shutil.rmtree(workspace.lancedb)
    assert (run_export(workspace, tiny_model_dir).encoded, len(rows_of(workspace))) == (0, rows)


def test_a_parquet_file_with_wrong_bytes_is_named_where_the_table_is_made_anew(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    workspace = Workspace(tmp_path)
    first = run_export(workspace, tiny_model_dir)
    shutil.rmtree(workspace.lancedb)
    write_wrong_bytes(first.parquet, "text")
    with pytest.raises(ValueError, match=rf"^{first.parquet} is damaged .*: delete it"):
        run_export(workspace, tiny_model_dir)
    first.parquet.unlink()
    assert run_export(workspace, tiny_model_dir).encoded == first.rows


def test_a_cut_parquet_file_is_named_and_made_anew_from_the_table(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    workspace = Workspace(tmp_path)
    first = run_export(workspace, tiny_model_dir)
    os.truncate(first.parquet, 100)
    with pytest.raises(ValueError, match=rf"{first.parquet} is damaged .*: delete it"):
        run_export(workspace, tiny_model_dir)
    first.parquet.unlink()
    assert (run_export(workspace, tiny_model_dir).encoded, pq.read_metadata(first.parquet).num_rows) == (
        0,
        first.rows,
    )
