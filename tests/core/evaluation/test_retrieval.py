"""Pools: what asks, what answers, what is a right answer."""

import tracemalloc

import numpy as np
import pytest

from vipolyqwen_core.contract import Task
from vipolyqwen_core.evaluation.retrieval import (
    Pool,
    Rows,
    build_cross_lingual_pools,
    build_pools,
    rank_pool,
    rank_pool_by,
)


def rows_of(*rows: tuple[str, str, int, int, int, float | None]) -> Rows:
    """Rows of (task, language, query, target, positive key, score), each its own component."""
    columns = list(zip(*rows, strict=True))
    return Rows(
        task=np.array(columns[0], dtype=object),
        language=np.array(columns[1], dtype=object),
        query=np.array(columns[2], dtype=np.uint64),
        target=np.array(columns[3], dtype=np.uint64),
        positive=np.array(columns[4], dtype=np.uint64),
        score=np.array([np.nan if s is None else s for s in columns[5]], dtype=np.float64),
        component=np.arange(len(rows)),
    )


def right_answers(pool: Pool, rows: Rows) -> dict[int, set[int]]:
    return {
        int(rows.query[query]): {int(rows.target[t]) for t in pool.targets[pool.relevant[[i]].indices]}
        for i, query in enumerate(pool.queries)
    }


def test_a_pool_is_one_task_in_one_language_with_distinct_targets() -> None:
    rows = rows_of(
        ("instr", "vi", 1, 10, 0, None),
        ("instr", "vi", 2, 11, 0, None),
        ("instr", "vi", 3, 11, 0, None),
        ("instr", "en", 4, 10, 0, None),
        ("instr", "en", 5, 12, 0, None),
        ("ocr", "vi", 6, 10, 0, None),
        ("ocr", "vi", 7, 13, 0, None),
    )
    pools = build_pools(rows, positive_score=0.5)
    assert [pool.name for pool in pools] == ["instr/en", "instr/vi", "ocr/vi"]
    vietnamese = pools[1]
    assert len(vietnamese.targets) == 2
    assert right_answers(vietnamese, rows) == {1: {10}, 2: {11}, 3: {11}}


def test_a_query_with_several_targets_has_several_right_answers() -> None:
    rows = rows_of(
        ("instr", "vi", 1, 10, 0, None), ("instr", "vi", 1, 11, 0, None), ("instr", "vi", 2, 12, 0, None)
    )
    (pool,) = build_pools(rows, 0.5)
    assert right_answers(pool, rows) == {1: {10, 11}, 2: {12}}


def test_targets_of_one_positive_key_are_right_answers_to_each_other() -> None:
    rows = rows_of(
        ("vqa_single", "vi", 1, 10, 7, None),
        ("vqa_single", "vi", 2, 11, 7, None),
        ("vqa_single", "vi", 3, 12, 0, None),
        ("vqa_single", "vi", 4, 13, 0, None),
    )
    (pool,) = build_pools(rows, 0.5)
    assert right_answers(pool, rows) == {1: {10, 11}, 2: {10, 11}, 3: {12}, 4: {13}}


def test_a_pair_below_the_positive_score_asks_nothing_but_its_target_is_searched() -> None:
    rows = rows_of(
        ("text_pair", "vi", 1, 10, 0, 0.9),
        ("text_pair", "vi", 2, 11, 0, 0.1),
        ("text_pair", "vi", 3, 12, 0, 1),
    )
    (pool,) = build_pools(rows, 0.5)
    assert right_answers(pool, rows) == {1: {10}, 3: {12}}
    assert len(pool.targets) == 3
    assert pool.num_pairs == 2


def test_a_score_at_the_threshold_asks_in_the_precision_of_the_table() -> None:
    stored = float(np.float32(0.7))  # below 0.7 as a double
    rows = rows_of(("text_pair", "vi", 1, 10, 0, stored), ("text_pair", "vi", 2, 11, 0, stored))
    (pool,) = build_pools(rows, 0.7)
    assert right_answers(pool, rows) == {1: {10}, 2: {11}}


def test_a_single_target_makes_no_pool() -> None:
    rows = rows_of(("ocr", "vi", 1, 10, 0, None), ("ocr", "vi", 2, 10, 0, None))
    assert build_pools(rows, 0.5) == []


def test_a_low_pair_with_a_known_query_adds_no_right_answer() -> None:
    rows = rows_of(("text_pair", "vi", 1, 10, 0, 0.9), ("text_pair", "vi", 1, 11, 0, 0.1))
    (pool,) = build_pools(rows, 0.5)
    assert right_answers(pool, rows) == {1: {10}}


def test_the_query_itself_is_no_candidate() -> None:
    rows = rows_of(("text_pair", "vi", 1, 10, 0, 0.9), ("text_pair", "vi", 10, 1, 0, 0.9))
    (pool,) = build_pools(rows, 0.5)
    assert pool.excluded.tolist() == [0, 1]
    assert pool.num_candidates.tolist() == [1, 1]
    assert right_answers(pool, rows) == {1: {10}, 10: {1}}
    sides = np.array([[1.0, 0.0], [0.8, 0.6]])  # what stands in the first row's query, and in its target
    queries, targets = sides.astype(np.float32), sides[::-1].astype(np.float32)
    for ranking in (
        rank_pool(pool, queries, targets),
        rank_pool_by(pool, lambda some: queries[pool.queries[some]] @ targets[pool.targets].T),
    ):
        assert ranking.means["recall@1"] == 1.0
        assert ranking.nearest[:, 1].tolist() == [-1, -1]


def test_the_query_itself_is_no_right_answer_by_its_key() -> None:
    rows = rows_of(("instr", "vi", 1, 10, 7, None), ("instr", "vi", 10, 11, 7, None))
    (pool,) = build_pools(rows, 0.5)
    assert right_answers(pool, rows) == {1: {10, 11}, 10: {11}}


def test_a_query_without_a_right_answer_asks_nothing_and_takes_its_component_along() -> None:
    rows = rows_of(
        ("instr", "vi", 1, 1, 0, None),  # answers itself
        ("instr", "vi", 2, 12, 0, None),
        ("instr", "vi", 3, 13, 0, None),
    )
    (pool,) = build_pools(rows, 0.5)
    assert right_answers(pool, rows) == {2: {12}, 3: {13}}
    assert pool.clusters.tolist() == [1, 2]


def test_cross_lingual_pools_need_a_shared_positive_key() -> None:
    rows = rows_of(
        ("instr", "vi", 1, 10, 5, None),
        ("instr", "vi", 2, 11, 0, None),
        ("instr", "en", 3, 12, 5, None),
        ("instr", "en", 4, 13, 0, None),
    )
    pools = build_cross_lingual_pools(rows, 0.5)
    assert [pool.language for pool in pools] == ["en>vi", "vi>en"]
    assert right_answers(pools[1], rows) == {1: {12}}
    assert len(pools[1].targets) == 2
    assert pools[1].num_pairs == 1


def test_a_key_joins_no_languages_of_two_tasks() -> None:
    rows = rows_of(
        ("instr", "vi", 1, 10, 5, None),
        ("instr", "vi", 2, 11, 0, None),
        ("instr", "en", 3, 12, 6, None),
        ("instr", "en", 4, 13, 0, None),
        ("ocr", "en", 5, 14, 5, None),
    )
    assert build_cross_lingual_pools(rows, 0.5) == []


def test_a_key_whose_only_answer_scores_low_joins_no_languages() -> None:
    rows = rows_of(
        ("text_pair", "vi", 1, 10, 5, 0.9),
        ("text_pair", "en", 3, 12, 5, 0.1),
        ("text_pair", "en", 4, 13, 6, 0.9),
    )
    assert build_cross_lingual_pools(rows, 0.5) == []


def test_perfect_vectors_score_one_and_chance_is_far_below() -> None:
    rows = rows_of(*[("ocr", "vi", i, 100 + i, 0, None) for i in range(1, 21)])
    (pool,) = build_pools(rows, 0.5)
    vectors = np.eye(20, dtype=np.float32)
    ranking = rank_pool(pool, vectors, vectors)
    assert ranking.means == dict.fromkeys(ranking.means, 1.0)
    assert pool.chance()["recall@1"] == pytest.approx(1 / 20)


def test_the_order_of_rows_moves_no_score() -> None:
    rng = np.random.default_rng(0)
    base = [("instr", "vi", int(q), int(t), int(k), None) for q, t, k in rng.integers(1, 15, (40, 3))]
    vectors = {key: rng.normal(size=8).astype(np.float32) for key in range(1, 15)}
    results = []
    for order in (range(40), rng.permutation(40)):
        rows = rows_of(*[base[i] for i in order])
        (pool,) = build_pools(rows, 0.5)
        ranking = rank_pool(
            pool,
            np.stack([vectors[int(q)] for q in rows.query]),
            np.stack([-vectors[int(t)] for t in rows.target]),
        )
        results.append((pool.task, len(pool.queries), ranking.means))
    assert results[0][0] is Task.INSTR
    assert results[0] == results[1]


def test_a_pool_grows_with_its_pairs_and_not_with_their_square() -> None:
    count = 10_000
    rows = rows_of(*[("instr", "vi", i, count + i, i // 2, None) for i in range(1, count + 1)])
    tracemalloc.start()
    (pool,) = build_pools(rows, 0.5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert pool.num_relevant.sum() == 2 * count - 2  # two rows share a key, but for the first and the last
    assert peak < count**2 / 10


def test_two_targets_are_a_choice() -> None:
    rows = rows_of(*[("vqa_multi", "en", i, 100 + i % 2, 0, None) for i in range(1, 10)])
    (pool,) = build_pools(rows, 0.5)
    assert pool.is_choice
    (pool,) = build_pools(rows_of(*[("vqa_single", "en", i, 100 + i, 0, None) for i in (1, 2)]), 0.5)
    assert not pool.is_choice  # two questions with an answer each
