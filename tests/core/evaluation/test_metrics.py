"""Metrics of a ranking against closed forms and an independent reference."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.special import comb

from vipolyqwen_core.evaluation import metrics
from vipolyqwen_core.evaluation.metrics import (
    TIE_TOLERANCE,
    chance_mrr,
    chance_recall,
    correlation,
    hits,
    query_scores,
    rank_by,
    rank_similarity,
)


def scores_of(similarity: list[list[float]], relevant: list[list[int]]) -> dict[str, np.ndarray]:
    mask = np.array(relevant, dtype=bool)
    nearest = rank_similarity(np.array(similarity), mask)
    return query_scores(hits(nearest, mask), mask.sum(axis=1))


def test_the_only_right_answer_on_rank_three_has_the_known_scores() -> None:
    scores = scores_of([[0.9, 0.8, 0.7, 0.1]], [[0, 0, 1, 0]])
    assert scores["recall@1"][0] == 0
    assert scores["recall@5"][0] == scores["recall@10"][0] == 1
    assert scores["mrr@10"][0] == pytest.approx(1 / 3)
    assert scores["ndcg@10"][0] == pytest.approx(1 / math.log2(4))


def test_ndcg_of_two_right_answers_counts_both() -> None:
    scores = scores_of([[0.9, 0.8, 0.7]], [[1, 0, 1]])
    assert scores["ndcg@10"][0] == pytest.approx((1 + 1 / 2) / (1 + 1 / math.log2(3)))
    assert scores["mrr@10"][0] == 1


def test_ndcg_counts_a_right_answer_that_was_not_found() -> None:
    scores = scores_of([[1 - i / 100 for i in range(12)]], [[1] + [0] * 10 + [1]])
    assert scores["ndcg@10"][0] == pytest.approx(1 / (1 + 1 / math.log2(3)))


def test_a_right_answer_beyond_rank_ten_scores_nothing() -> None:
    similarity = [[1 - i / 100 for i in range(12)]]
    scores = scores_of(similarity, [[0] * 10 + [1, 0]])
    assert all(values[0] == 0 for values in scores.values())


def test_a_tie_counts_against_the_right_answer() -> None:
    for column in range(3):
        relevant = [[int(i == column) for i in range(3)]]
        assert scores_of([[0.5, 0.5, 0.5]], relevant)["mrr@10"][0] == pytest.approx(1 / 3)
    assert scores_of([[0.5, 0.4999]], [[1, 0]])["mrr@10"][0] == 1  # no tie


def test_a_collapsed_model_scores_below_chance_whatever_the_rounding() -> None:
    rng = np.random.default_rng(0)
    similarity = 1 - rng.random((40, 100)) * 1e-7
    relevant = np.eye(40, 100, dtype=bool)
    nearest = rank_similarity(similarity, relevant)
    assert not hits(nearest, relevant).any()


def test_rounding_noise_between_near_ties_moves_no_score() -> None:
    rng = np.random.default_rng(1)
    base = rng.choice([0.1, 0.3, 0.5], size=(50, 30))
    relevant = rng.random((50, 30)) < 0.1
    scores = [
        query_scores(hits(rank_similarity(base + noise, relevant), relevant), relevant.sum(axis=1))
        for noise in (0.0, rng.normal(scale=2e-7, size=base.shape))
    ]
    for metric in scores[0]:
        assert np.array_equal(scores[0][metric], scores[1][metric])


def test_excluded_candidates_are_never_ranked() -> None:
    relevant = np.array([[False, True, False]])
    excluded = np.array([[True, False, False]])
    nearest = rank_similarity(np.array([[0.9, 0.5, 0.1]]), relevant, excluded)
    assert nearest.tolist() == [[1, 2, -1]]
    assert hits(nearest, relevant).tolist() == [[True, False, False]]


def test_a_rank_that_nothing_is_left_for_is_no_hit() -> None:
    relevant, excluded = np.array([[True, False]]), np.array([[False, True]])
    nearest = rank_similarity(np.array([[0.9, 0.5]]), relevant, excluded)
    assert nearest.tolist() == [[0, -1]]
    assert hits(nearest, relevant).tolist() == [[True, False]]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), queries=st.integers(1, 6), candidates=st.integers(1, 15))
def test_rank_equals_a_sort_written_out(seed: int, queries: int, candidates: int) -> None:
    rng = np.random.default_rng(seed)
    query = rng.normal(size=(queries, 4)).astype(np.float32)
    target = rng.normal(size=(candidates, 4)).astype(np.float32)
    relevant = rng.random((queries, candidates)) < 0.3
    nearest = rank_similarity(query @ target.T, relevant)
    for row in range(queries):
        similarity = [float(np.dot(query[row], target[column])) for column in range(candidates)]
        assert nearest[row].tolist() == sorted(range(candidates), key=lambda c: -similarity[c])[:10]


def test_chance_of_recall_at_1_is_right_answers_over_candidates() -> None:
    assert chance_recall(np.array([1, 3]), np.array([10, 10]), 1) == pytest.approx(0.2)


@settings(max_examples=50, deadline=None)
@example(n=3, r=1, k=2)  # as many wrong ones as places
@example(n=3, r=0, k=5)
@given(n=st.integers(1, 60), r=st.integers(0, 60), k=st.integers(1, 10))
def test_chance_equals_the_hypergeometric_count(n: int, r: int, k: int) -> None:
    r = min(r, n)
    expected = 1 - comb(n - r, min(k, n), exact=True) / comb(n, min(k, n), exact=True)
    assert chance_recall(np.array([r]), np.array([n]), k) == pytest.approx(expected, abs=1e-9)


def test_chance_equals_the_mean_over_random_orders() -> None:
    rng = np.random.default_rng(2)
    relevant = np.zeros((4000, 30), dtype=bool)
    relevant[:, :2] = True
    scores = query_scores(
        hits(rank_similarity(rng.random((4000, 30)), relevant), relevant), relevant.sum(axis=1)
    )
    counts = (np.array([2]), np.array([30]))
    assert scores["recall@5"].mean() == pytest.approx(chance_recall(*counts, 5), abs=0.03)
    assert scores["mrr@10"].mean() == pytest.approx(chance_mrr(*counts), abs=0.03)


def test_correlation_is_one_for_a_monotone_relation_and_left_out_for_a_constant() -> None:
    predicted = np.array([0.1, 0.2, 0.9])
    assert correlation(predicted, np.array([0.0, 0.5, 0.6]))["spearman"] == pytest.approx(1)
    both = correlation(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 9.0]))
    assert both == pytest.approx({"spearman": 1 - 6 * 2 / (4 * 15), "pearson": 11.5 / math.sqrt(5 * 38.75)})
    assert correlation(predicted, np.array([0.5, 0.5, 0.5])) == {}
    assert correlation(np.array([0.5, 0.5, 0.5]), predicted) == {}
    assert correlation(predicted[:2], np.array([0.0, 0.5])) == {}  # two are always on a line


def test_similarities_are_asked_for_block_by_block_and_rank_as_a_stable_sort_of_all_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "BLOCK_SIMILARITIES", 256 * 40 + 39)
    rng = np.random.default_rng(3)
    similarity, relevant = rng.integers(0, 9, (600, 40)) / 9, rng.random((600, 40)) < 0.1  # with ties
    excluded = rng.integers(-1, 40, 600)
    asked = []

    def some(rows: slice) -> np.ndarray:
        asked.append(len(similarity[rows]))
        return similarity[rows]

    nearest, hit = rank_by(some, csr_array(relevant), excluded)
    lowered = similarity - TIE_TOLERANCE * relevant
    lowered[excluded[:, None] == np.arange(40)] = -np.inf
    whole = np.argsort(-lowered, axis=1, kind="stable")[:, :10]
    assert np.array_equal(nearest, whole)
    assert np.array_equal(hit, np.take_along_axis(relevant, whole, axis=1))
    assert asked == [256, 256, 88]
