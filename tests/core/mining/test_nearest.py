"""The nearest targets by blocks are those of the whole matrix."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vipolyqwen_core.mining import nearest
from vipolyqwen_core.mining.nearest import Sides, nearest_below, similarities

CPU = torch.device("cpu")


def some_sides(count: int, random: np.random.Generator, dim: int = 6) -> Sides:
    """Unit vectors, some of them shared, with few keys."""
    vectors = random.normal(size=(max(1, count // 2), dim)).astype(np.float32)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    return Sides(vectors, random.integers(0, len(vectors), count), random.integers(0, 4, count))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "TARGETS_AT_ONCE", 5)
    monkeypatch.setattr(nearest, "TILE_QUERIES", 3)


@given(
    seed=st.integers(0, 10_000),
    num_queries=st.integers(1, 9),
    num_targets=st.integers(1, 23),
    count=st.integers(1, 8),
)
def test_blocks_find_what_the_whole_matrix_holds(
    seed: int, num_queries: int, num_targets: int, count: int
) -> None:
    random = np.random.default_rng(seed)
    queries, targets = some_sides(num_queries, random), some_sides(num_targets, random)
    limits = random.uniform(-1, 1, num_queries).astype(np.float32)
    values, places = nearest_below(queries, targets, limits, count, CPU)
    whole = (
        queries.vectors[queries.rows].astype(np.float64) @ targets.vectors[targets.rows].astype(np.float64).T
    )
    for query, (found, where) in enumerate(zip(values, places, strict=True)):
        allowed = [
            whole[query, target]
            for target in range(num_targets)
            if whole[query, target] < limits[query] - 1e-6
            and not (queries.keys[query] == targets.keys[target] != 0)
        ]
        expected = sorted(allowed, reverse=True)[:count]
        left = np.isfinite(found)
        assert np.allclose(found[left], expected, atol=1e-6)
        assert np.allclose(whole[query, where[left]], expected, atol=1e-6)
        assert len(set(where[left])) == left.sum(), "a target twice"


def test_a_target_at_the_limit_is_not_below_it() -> None:
    queries = Sides(np.eye(2, dtype=np.float16), np.array([0]), np.zeros(1, dtype=np.int64))
    targets = Sides(np.eye(2, dtype=np.float16), np.array([0, 1]), np.zeros(2, dtype=np.int64))
    values, places = nearest_below(queries, targets, np.ones(1, dtype=np.float32), 2, CPU)
    assert values.tolist() == [[0.0, -np.inf]]
    assert places[0, 0] == 1


def test_similarities_are_of_sides_in_the_same_place() -> None:
    random = np.random.default_rng(0)
    queries, targets = some_sides(12, random), some_sides(12, random)
    expected = [
        float(queries.vectors[q].astype(np.float32) @ targets.vectors[t].astype(np.float32))
        for q, t in zip(queries.rows, targets.rows, strict=True)
    ]
    assert np.allclose(similarities(queries, targets), expected, atol=1e-6)


@pytest.mark.gpu
def test_a_gpu_finds_what_the_cpu_finds_among_close_targets() -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(600, 1024)).astype(np.float32) + 3 * random.normal(size=1024)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    queries, targets = (
        Sides(vectors, rows, np.zeros(len(rows), dtype=np.int64))
        for rows in (np.arange(100), np.arange(100, 600))
    )
    limits = np.ones(100, dtype=np.float32)
    expected, _ = nearest_below(queries, targets, limits, 10, CPU)
    found, places = nearest_below(queries, targets, limits, 10, torch.device("cuda"))
    assert np.allclose(found, expected, atol=1e-6)
    assert np.allclose(similarities(queries, Sides(vectors, 100 + places[:, 0], targets.keys)), found[:, 0])
