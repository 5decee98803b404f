"""The bootstrap against scipy's, and what clusters do to it."""

import numpy as np
import pytest
from scipy import stats

from vipolyqwen_core.evaluation.bootstrap import Sample, bootstrap_mean


def test_with_one_query_a_component_it_equals_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(0).normal(0.1, 1.0, 400)
    ours = bootstrap_mean([Sample(values, np.arange(400))], resamples=5000, confidence=0.9, seed=1)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=5000, confidence_level=0.9, method="percentile", rng=2
    ).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)


def test_queries_of_one_component_are_not_taken_for_independent() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=20), 10)
    alone = bootstrap_mean([Sample(values, np.arange(200))], 2000, 0.95, seed=0)
    together = bootstrap_mean([Sample(values, np.repeat(np.arange(20), 10))], 2000, 0.95, seed=0)
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_one_component_alone_proves_nothing() -> None:
    together = Sample(np.full(200, 0.4), np.zeros(200, dtype=np.int64))
    apart = Sample(np.full(200, 0.4), np.arange(200))
    interval = bootstrap_mean([together, apart], 100, 0.95, seed=0)
    assert (interval.mean, interval.low, interval.high) == (pytest.approx(0.4), -1.0, 1.0)


def test_each_pool_has_the_same_weight() -> None:
    small = Sample(np.ones(5), np.arange(5))
    large = Sample(np.zeros(500), np.arange(500))
    interval = bootstrap_mean([small, large], 100, 0.95, seed=0)
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_the_same_seed_gives_the_same_interval() -> None:
    sample = Sample(np.random.default_rng(3).random(50), np.arange(50))
    assert bootstrap_mean([sample], 200, 0.95, seed=4) == bootstrap_mean([sample], 200, 0.95, seed=4)


def test_an_empty_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_mean([Sample(np.empty(0), np.empty(0, dtype=np.int64))], 10, 0.95, seed=0)
