"""Mining: near wrong targets of other pairs, never a right answer that is known; training uses them."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.core.small_training_set import SmallPair, picture, write_training_set
from vipolyqwen_core import ViPolyQwenEmbedder
from vipolyqwen_core.config import MiningSettings, ProcessingSettings, Recipe
from vipolyqwen_core.contract import MINED, Split, Task
from vipolyqwen_core.corpus.tables import StageSummary, arrow_schema, read_stage
from vipolyqwen_core.mining.mine import Mined, find_negatives, mine, write_mined
from vipolyqwen_core.mining.pairs import Pairs, read_pairs
from vipolyqwen_core.mining.vectors import DistinctVectors, read_vectors
from vipolyqwen_core.recipes import demo
from vipolyqwen_core.serving.current_export import read_current
from vipolyqwen_core.serving.export import export
from vipolyqwen_core.training.hard_negatives import SIZES
from vipolyqwen_core.training.identity import identified_run, mining_fingerprint
from vipolyqwen_core.training.loading import ChunkLoader, ChunkRequest
from vipolyqwen_core.training.run_file import read_run, write_run
from vipolyqwen_core.workspace import Workspace

COUNT = 2


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def random_pairs(count: int, seed: int) -> tuple[Pairs, DistinctVectors]:
    """Pairs of two tasks with few distinct contents, some keys, and queries near their targets."""
    random = np.random.default_rng(seed)

    def contents(low: int, distinct: int) -> np.ndarray:
        return (random.integers(0, distinct, count) + low).astype(np.uint64)

    query, target = contents(1, count), contents(count // 2, count)  # some content stands on both sides
    pairs = Pairs(
        keys=np.arange(count, dtype=np.uint64),
        task=random.integers(0, 2, count),
        query=query,
        target=target,
        positive=random.integers(0, 4, count).astype(np.uint64)
        * (random.random(count) < 0.3).astype(np.uint64),
        asks=random.random(count) < 0.8,
        sizes={name: np.ones(count, dtype=np.int64) for name in ("tokens", "patches", "images")},
    )
    # as a query a content has a prefix, and another vector than as a target
    as_query, as_target = unit(random.normal(size=(2, 2 * count + 1, 8)) + 1).astype(np.float16)
    vectors = DistinctVectors(as_query, query.astype(np.int64), as_target, target.astype(np.int64), ())
    return pairs, vectors


def right_answers(pairs: Pairs, anchor: int) -> set[int]:
    """Contents that answer a row, by the plain rule."""
    right = {int(pairs.query[anchor]), int(pairs.target[anchor])}
    for row in range(len(pairs)):
        same_key = pairs.positive[anchor] != 0 and pairs.positive[row] == pairs.positive[anchor]
        if pairs.query[row] == pairs.query[anchor] or same_key:
            right.add(int(pairs.target[row]))
    return right


@pytest.mark.parametrize("seed", range(5))
def test_the_nearest_wrong_targets_of_the_task_are_found(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vipolyqwen_core.mining.mine.QUERIES_AT_ONCE", 7)
    pairs, vectors = random_pairs(60, seed)
    mined = find_negatives(pairs, vectors, MiningSettings(negatives_per_pair=COUNT, max_similarity_share=0.9))
    whole = vectors.query[vectors.query_rows].astype(np.float64) @ vectors.target[vectors.target_rows].T
    found = 0
    for anchor in range(len(pairs)):
        rows = mined.negatives[anchor][mined.negatives[anchor] >= 0]
        if not pairs.asks[anchor]:
            assert not len(rows)
            continue
        right, limit = right_answers(pairs, anchor), whole[anchor, anchor]
        assert mined.own[anchor] == pytest.approx(limit, abs=1e-4)
        limit -= 0.1 * abs(limit)
        wrong = {
            int(pairs.target[row]): whole[anchor, row]
            for row in range(len(pairs))
            if pairs.task[row] == pairs.task[anchor]
            and int(pairs.target[row]) not in right
            and whole[anchor, row] < limit
        }
        expected = sorted(wrong.values(), reverse=True)[:COUNT]
        assert np.allclose(mined.similarities[anchor][: len(rows)], expected, atol=1e-4)
        assert [int(pairs.target[row]) in wrong for row in rows] == [True] * len(expected)
        assert len({int(pairs.target[row]) for row in rows}) == len(rows), "the same content twice"
        found += len(rows)
    assert found > len(pairs), "the example must have something to find"


@pytest.mark.parametrize("by_key", [True, False])
def test_many_answers_of_one_key_or_query_do_not_crowd_out_what_is_wrong(by_key: bool) -> None:
    answers, wrong = 40, 2
    count = answers + wrong
    numbers = np.arange(1, count + 1, dtype=np.uint64)
    pairs, _ = random_pairs(count, 0)
    pairs = replace(
        pairs,
        task=np.zeros(count, dtype=np.int64),
        query=numbers if by_key else np.where(numbers <= answers, np.uint64(1), numbers),
        target=numbers + np.uint64(100),
        positive=np.where(by_key & (numbers <= answers), 7, 0).astype(np.uint64),
        asks=np.arange(count) == 0,
    )
    cosine = np.array([1.0] + [0.8] * (answers - 1) + [0.5, 0.3])
    targets = np.stack([cosine, np.sqrt(1 - cosine**2)], axis=1).astype(np.float16)
    queries = np.eye(1, 2, dtype=np.float16).repeat(count, axis=0)
    vectors = DistinctVectors(queries, np.arange(count), targets, np.arange(count), ())
    mined = find_negatives(pairs, vectors, MiningSettings(negatives_per_pair=COUNT, max_similarity_share=0.9))
    assert mined.negatives[0].tolist() == [answers, answers + 1]


def test_sizes_are_those_of_the_negatives_that_were_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vipolyqwen_core.mining.mine.WRITTEN_ROWS", 2)
    pairs, _ = random_pairs(3, 0)
    pairs = replace(pairs, sizes={"tokens": np.array([1, 20, 300]), "patches": np.array([4, 0, 8]),
                                  "images": np.array([1, 0, 1])})  # fmt: skip
    mined = replace(Mined.none(3, MiningSettings(negatives_per_pair=COUNT)),
                    negatives=np.array([[1, -1], [2, 0], [-1, -1]]))  # fmt: skip
    write_mined(mined, pairs, tmp_path / "mined.arrow")
    table = pa.ipc.open_file(tmp_path / "mined.arrow").read_all()
    assert table["negatives"].to_pylist() == [[1], [2, 0], []]
    assert [table[name].to_pylist() for name in SIZES] == [[20, 301, 0], [0, 12, 0], [0, 2, 0]]


def training_pairs() -> list[SmallPair]:
    """Training pairs of three tasks, with pictures on targets, keys, scores; and a pair to evaluate."""
    pairs = []
    for number in range(8):
        pairs += [
            SmallPair(f"Say number {number}", f"The number is {number}.", positive_key=f"n{number % 4}"),
            SmallPair(f"Describe {number}", f"<image>disc {number}", target_pictures=(number,)),
            SmallPair(f"a thing {number}", f"the thing {number}", Task.TEXT_PAIR, score=number / 8),
            SmallPair(
                f"<image>What colour is {number}?",
                f"colour {number % 3}",
                Task.VQA_SINGLE,
                query_pictures=(number,),
            ),
        ]
    return [*(replace(pair, split=Split.TRAIN) for pair in pairs), SmallPair("Ask", "Answer")]


@pytest.fixture
def recipe() -> Recipe:
    return replace(demo(), mining=MiningSettings(negatives_per_pair=COUNT, max_similarity_share=1.0))


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("VIPOLYQWEN_HOME", str(tmp_path))
    place = Workspace(tmp_path)
    write_training_set(place.training_set, training_pairs())
    return place


def mined_rows(workspace: Workspace) -> list[dict[str, list[int]]]:
    table = pa.ipc.open_file(workspace.hard_negatives / "mined.arrow").read_all()
    assert table.schema == arrow_schema(MINED)
    return table.to_pylist()


@pytest.fixture
def mined(workspace: Workspace, recipe: Recipe, tiny_model_dir: Path) -> StageSummary:
    """An export of another training set, then mining for the present one."""
    present = training_pairs()
    write_training_set(workspace.training_set, present[:6])
    export(workspace.training_set, tiny_model_dir, "3", workspace, recipe.export)
    write_training_set(workspace.training_set, present)
    return mine(workspace, recipe)


def test_what_is_mined_is_near_by_the_model_of_the_export(
    workspace: Workspace, mined: StageSummary, tiny_model_dir: Path
) -> None:
    assert mined.details["teacher"] == "3"
    rows = mined_rows(workspace)
    assert len(rows) == 32
    train = [pair for pair in training_pairs() if pair.split is Split.TRAIN]
    embedder = ViPolyQwenEmbedder.from_pretrained(tiny_model_dir)
    asked = embedder.encode(train[0].query)
    shown = [[picture(number) for number in pair.target_pictures] or None for pair in train]
    similarity = embedder.encode([pair.target for pair in train], images=shown) @ asked
    own = [row for row, pair in enumerate(train) if pair.task is Task.INSTR]
    wrong = [r for r in own if train[r].positive_key != "n0" and similarity[r] < similarity[0]]
    nearest = sorted(wrong, key=lambda row: -similarity[row])[:COUNT]
    assert rows[0]["negatives"] == nearest
    assert np.allclose(rows[0]["similarities"], similarity[nearest], atol=2e-3)
    unasked = [row for row, pair in enumerate(train) if pair.score is not None and pair.score < 0.5]
    assert unasked
    assert all(rows[row]["negatives"] == [] for row in unasked)


def test_without_an_export_nothing_is_mined_and_training_goes_without(
    workspace: Workspace, recipe: Recipe, tiny_backbone: Path
) -> None:
    summary = mine(workspace, recipe)
    assert summary.details["teacher"] == ""
    assert all(row["negatives"] == [] for row in mined_rows(workspace))
    run = identified_run(workspace, recipe, tiny_backbone, {})
    plain = identified_run(workspace, replace(recipe, mining=MiningSettings()), tiny_backbone, {})
    assert run.hard_negatives is None
    assert run.run_name == plain.run_name
    asked: list[Workspace] = []
    assert mine(workspace, recipe, bring_back=asked.append).reused
    assert asked == [workspace]  # there may be a version by now
    assert summary.details["pairs_that_ask"] == 28
    strict = replace(recipe, objective=replace(recipe.objective, positive_score=0.75))
    assert mine(workspace, strict).details["pairs_that_ask"] == 26


def test_the_first_export_is_mined_with_where_nothing_was_mined_before(
    workspace: Workspace, recipe: Recipe, tiny_model_dir: Path
) -> None:
    mine(workspace, recipe)
    export(workspace.training_set, tiny_model_dir, "1", workspace, recipe.export)
    summary = mine(workspace, recipe)
    assert not summary.reused
    assert summary.details["teacher"] == "1"
    shutil.rmtree(workspace.exports)
    asked: list[Workspace] = []
    assert mine(workspace, recipe, bring_back=asked.append).reused
    assert asked == []  # what was mined stands


def test_where_the_first_export_is_gone_what_was_mined_without_does_not_stand(
    workspace: Workspace, recipe: Recipe, tiny_model_dir: Path
) -> None:
    mine(workspace, recipe)
    export(workspace.training_set, tiny_model_dir, "1", workspace, recipe.export)
    shutil.rmtree(workspace.lancedb)
    with pytest.raises(ValueError, match="is gone"):
        mine(workspace, recipe)


def test_an_export_of_fewer_pairs_is_refused(
    workspace: Workspace, recipe: Recipe, tiny_model_dir: Path, tmp_path: Path
) -> None:
    few = write_training_set(tmp_path / "few", training_pairs()[:6])
    exported = export(few, tiny_model_dir, "1", workspace, recipe.export)
    with pytest.raises(ValueError, match=r"embeddings.parquet lacks [1-9]\d* sides of the training set"):
        read_vectors(exported.parquet, read_pairs(workspace.training_set, 0.5), tmp_path)


def test_a_disk_without_room_for_the_vectors_is_named_and_mining_goes_on_once_there_is(
    workspace: Workspace, mined: StageSummary, recipe: Recipe
) -> None:
    """Written to as a map, a file for which there is no room would end the process by SIGBUS."""

    def full(file: int, start: int, num_bytes: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    shutil.rmtree(workspace.hard_negatives)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match=r"No space left on device \(0\.00 GB are wanted\): .*query\.f16"):
            mine(workspace, recipe)
    assert not list(workspace.home.glob("*hard_negatives*"))
    assert mine(workspace, recipe).data_version == mined.data_version


@pytest.mark.parametrize("read", ["read_pairs", "export"])
def test_a_training_set_that_is_built_anew_meanwhile_is_not_mined_under_the_name_of_the_old_one(
    workspace: Workspace, mined: StageSummary, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    working = resolve_name(f"vipolyqwen_core.mining.mine:{read}")

    def late(*arguments: Any) -> Any:
        write_training_set(workspace.training_set, training_pairs()[:12])
        return working(*arguments)

    fewer = replace(recipe, mining=replace(recipe.mining, negatives_per_pair=1))
    monkeypatch.setattr(f"vipolyqwen_core.mining.mine.{read}", late)
    with pytest.raises(ValueError, match=r"was built anew meanwhile.*again"):
        mine(workspace, fewer)
    assert read_stage(workspace.hard_negatives) == mined
    monkeypatch.undo()
    assert mine(workspace, fewer).pairs_in == len(mined_rows(workspace)) < mined.pairs_in


def test_what_was_mined_stands_until_data_or_settings_change(
    workspace: Workspace, mined: StageSummary, recipe: Recipe, tiny_model_dir: Path
) -> None:
    export(workspace.training_set, tiny_model_dir, "4", workspace, recipe.export)  # a new champion
    again = mine(workspace, recipe)
    assert (again.reused, again.data_version) == (True, mined.data_version)
    other = replace(recipe, mining=replace(recipe.mining, negatives_per_pair=1))
    fewer = mine(workspace, other)
    assert not fewer.reused
    assert fewer.details["teacher"] == "4"
    assert max(len(row["negatives"]) for row in mined_rows(workspace)) == 1


def test_mining_is_refused_where_a_version_was_in_use_and_all_exports_are_gone(
    workspace: Workspace, recipe: Recipe, tiny_model_dir: Path
) -> None:
    """Also where a table of nothing was written before: training would go without, and be silently worse."""
    mine(workspace, recipe)
    shutil.copytree(tiny_model_dir, workspace.models / "v7")
    with pytest.raises(ValueError, match=r"exported table, .*lancedb, is gone"):
        mine(workspace, recipe)


def test_mining_for_other_data_is_refused_where_the_exported_table_is_gone(
    workspace: Workspace, mined: StageSummary, recipe: Recipe, tiny_model_dir: Path
) -> None:
    shutil.rmtree(workspace.lancedb)
    assert mine(workspace, recipe).reused
    write_training_set(workspace.training_set, training_pairs()[:12])
    with pytest.raises(ValueError, match=r"exported table, .*lancedb, is gone.* run `vipolyqwen export`"):
        mine(workspace, recipe)
    assert read_stage(workspace.hard_negatives) == mined
    export(workspace.training_set, tiny_model_dir, "3", workspace, recipe.export)
    assert mine(workspace, recipe).details["teacher"] == "3"


def test_a_run_with_mined_negatives_is_a_run_of_its_own(
    workspace: Workspace, mined: StageSummary, recipe: Recipe, tiny_backbone: Path
) -> None:
    run = identified_run(workspace, recipe, tiny_backbone, {})
    plain = identified_run(workspace, replace(recipe, mining=MiningSettings()), tiny_backbone, {})
    assert run.hard_negatives == workspace.hard_negatives
    assert run.run_name != plain.run_name
    path = write_run(run)
    assert json.loads(path.read_text())["hard_negatives"] == "../../hard_negatives"
    assert read_run(path) == run
    other = replace(recipe, mining=replace(recipe.mining, negatives_per_pair=1))
    with pytest.raises(ValueError, match="are those of other data or settings"):
        identified_run(workspace, other, tiny_backbone, {})
    mine(workspace, other)
    assert identified_run(workspace, other, tiny_backbone, {}).run_name not in (run.run_name, plain.run_name)


def test_settings_that_find_other_negatives_have_another_fingerprint(recipe: Recipe) -> None:
    farther = replace(recipe, mining=replace(recipe.mining, max_similarity_share=0.5))
    stricter = replace(recipe, objective=replace(recipe.objective, positive_score=0.9))
    found = {mining_fingerprint(each, "data") for each in (recipe, farther, stricter)}
    assert len(found | {mining_fingerprint(recipe, "other data")}) == 4


def test_training_on_negatives_that_were_not_mined_is_refused(
    workspace: Workspace, recipe: Recipe, tiny_backbone: Path
) -> None:
    with pytest.raises(ValueError, match=r"are not there .*vipolyqwen mine"):
        identified_run(workspace, recipe, tiny_backbone, {})
    with pytest.raises(ValueError, match=r"mines nothing: its mining.negatives_per_pair is 0"):
        mine(workspace, demo())


def test_a_chunk_holds_the_targets_that_were_mined(
    workspace: Workspace, mined: StageSummary, tiny_backbone: Path, tiny_processing: ProcessingSettings
) -> None:
    loader = ChunkLoader(
        workspace.training_set, tiny_backbone, tiny_processing, 0.0, 0, mined=workspace.hard_negatives
    )
    rows = np.array([1, 0, 30], dtype=np.int64)  # a picture's pair, a keyed one, a scored one
    chunk = loader[ChunkRequest(0, 0, rows, needs_picture=False, rows_by_rank=(rows,))]
    assert chunk.sizes == ((3, 3 * COUNT),)
    table = mined_rows(workspace)
    chosen = [table[row]["negatives"] for row in rows]
    assert all(len(negatives) == COUNT for negatives in chosen)
    flat = loader.rows.take([row for negatives in chosen for row in negatives])
    keys = chunk.keys
    assert keys.negative_pair.tolist() == [0, 0, 1, 1, 2, 2]
    for found, column in (
        (keys.negative_hash, "target_hash"),
        (keys.negative_query_hash, "query_hash"),
        (keys.negative_positive_hash, "positive_hash"),
    ):
        assert [value % 2**64 for value in found.tolist()] == [row[column] for row in flat]
    segments = [part.tolist() for part in chunk.packed.input_ids.split(chunk.packed.segments.lengths)]
    texts = [loader.processor.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in segments]
    assert texts[6:] == [row["target"].replace("<image>", "") for row in flat]
    prefix = loader.processor.prompt.prefixes[Task.TEXT_PAIR]
    assert [ids[0] == prefix for ids in segments[6:]] == [False] * 4 + [True] * 2
    pictures = sum(len(row["target_image_rows"]) for row in flat) + 1  # and the target of the first pair
    assert len(chunk.packed.pictures.grid) == pictures


def test_what_is_written_tells_who_found_how_many_of_what_size(
    workspace: Workspace, mined: StageSummary
) -> None:
    assert {path.name for path in workspace.hard_negatives.iterdir()} == {"mined.arrow", "stage.json"}
    told = read_stage(workspace.hard_negatives)
    assert told is not None
    assert told.details["teacher_digest"] == read_current(workspace).model_digest
    assert told.pairs_in == told.pairs_out == 32
    rows = mined_rows(workspace)
    counts = [len(row["negatives"]) for row in rows]
    train = pa.ipc.open_file(workspace.training_set / "train.arrow").read_all().to_pylist()
    keys = read_pairs(workspace.training_set, 0.5).positive
    assert keys.tolist() == [row["positive_hash"] for row in train]
    for row in rows:
        wrong = [train[number] for number in row["negatives"]]
        assert row["tokens"] == sum(each["target_tokens"] for each in wrong)
        assert row["patches"] == sum(each["target_patches"] for each in wrong)
        assert row["images"] == sum(len(each["target_image_rows"]) for each in wrong)
    assert told.details["negatives"] == sum(counts)
    assert told.details["pairs_with_negatives"] == sum(map(bool, counts))
    assert told.details["pairs_that_ask"] == 28
    mean = np.mean([value for row in rows for value in row["similarities"]])
    assert told.details["mean_similarity_of_negatives"] == pytest.approx(mean, abs=1e-4)
    assert told.details["mean_similarity_of_negatives"] < told.details["mean_similarity_of_targets"]
