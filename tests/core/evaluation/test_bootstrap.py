"""The bootstrap against scipy's, and what clusters do to it."""

import numpy as np
import pytest
from scipy import stats

from vipolyqwen_core.evaluation.bootstrap import Sample, _expanded_tail, bootstrap_mean


def test_with_one_query_a_component_it_equals_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(0).normal(0.1, 1.0, 400)
    ours = bootstrap_mean([Sample(values, np.arange(400))], resamples=5000, confidence=0.9, seed=1)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=5000, confidence_level=0.9, method="percentile", rng=2
    ).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)
    assert ours != bootstrap_mean([Sample(values, np.arange(400))], resamples=5000, confidence=0.9, seed=2)


def test_queries_of_one_component_are_not_taken_for_independent() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=20), 10)
    alone = bootstrap_mean([Sample(values, np.arange(200))], 2000, 0.95, seed=0)
    together = bootstrap_mean([Sample(values, np.repeat(np.arange(20), 10))], 2000, 0.95, seed=0)
    assert together.high - together.low > 2 * (alone.high - alone.low)


def wins_by_chance(num_pools: int, shared: bool, trials: int = 300, pictures: int = 60) -> float:
    """How often a model that is no better seems surely better: three questions on each picture."""
    rng = np.random.default_rng(7)
    clusters = np.repeat(np.arange(pictures), 3)
    wins = 0
    for trial in range(trials):
        effects = rng.normal(0.0, 0.3, (1 if shared else num_pools, pictures))
        effects = np.broadcast_to(effects, (num_pools, pictures))
        pools = [effects[pool][clusters] + rng.normal(0.0, 0.2, len(clusters)) for pool in range(num_pools)]
        apart = [clusters if shared else clusters + pictures * pool for pool in range(num_pools)]
        samples = [Sample(values, numbers) for values, numbers in zip(pools, apart, strict=True)]
        wins += bootstrap_mean(samples, 200, 0.95, seed=trial).low > 0
    return wins / trials


@pytest.mark.parametrize("num_pools", [1, 3, 5])
def test_what_pools_share_is_not_taken_for_independent(num_pools: int) -> None:
    # 2.5 % by the interval, some more with 60 components; drawn apart, five pools gave 15 %
    assert wins_by_chance(num_pools, shared=True) <= 0.06
    assert wins_by_chance(num_pools, shared=False) <= 0.06


def test_few_pictures_prove_no_more_than_they_can() -> None:
    assert wins_by_chance(1, shared=False, trials=1000, pictures=5) <= 0.06  # 8.6 % by plain percentiles


def test_an_interval_is_expanded_by_the_components_that_matter() -> None:
    even, uneven = np.ones((50, 1)), np.ones((50, 1))
    uneven[0] = 200  # of 249 questions
    assert _expanded_tail(0.95, np.ones((100_000, 1))) == pytest.approx(0.025, abs=1e-5)
    by_student = stats.norm.sf(np.sqrt(50 / 49) * stats.t.ppf(0.975, 49))
    assert _expanded_tail(0.95, even) == pytest.approx(by_student)
    assert _expanded_tail(0.95, np.hstack([even, 4 * even])) == pytest.approx(by_student)
    assert _expanded_tail(0.95, uneven) < 1e-6
    few_and_many = np.zeros(
        (55, 2)
    )  # a pool of 5 pictures weighs as much as one of 50 with 40 questions each
    few_and_many[:5, 0], few_and_many[5:, 1] = 1, 40
    freedom = (5 / 5**2 + 50 / 50**2) ** 2 / (5 / 5**4 + 50 / 50**4) - 1
    expected = stats.norm.sf(np.sqrt((freedom + 1) / freedom) * stats.t.ppf(0.975, freedom))
    assert _expanded_tail(0.95, few_and_many) == pytest.approx(expected)


def test_pools_with_the_same_pictures_are_no_surer_than_one_of_them() -> None:
    values = np.random.default_rng(1).normal(size=100)
    one = bootstrap_mean([Sample(values, np.arange(100))], 500, 0.95, seed=2)
    thrice = bootstrap_mean([Sample(values, np.arange(100))] * 3, 500, 0.95, seed=2)
    assert (thrice.mean, thrice.low, thrice.high) == pytest.approx((one.mean, one.low, one.high))


def test_the_order_of_a_pools_queries_moves_nothing() -> None:
    values = np.random.default_rng(1).normal(size=100)
    one = bootstrap_mean([Sample(values, np.arange(100))], 500, 0.95, seed=2)
    turned = bootstrap_mean(
        [Sample(values, np.arange(100)), Sample(values[::-1], np.arange(100)[::-1])], 500, 0.95, seed=2
    )
    assert (turned.low, turned.high) == pytest.approx((one.low, one.high))


def test_as_many_components_are_drawn_as_there_are() -> None:
    # of two, both draws are equal in half of the resamples: 0 and 1 a quarter each, else 0.5
    interval = bootstrap_mean([Sample(np.array([0.0, 1.0]), np.arange(2))], 2000, 0.2, seed=0)
    assert (interval.low, interval.high) == (0.5, 0.5)


def test_a_pool_of_which_nothing_is_drawn_is_left_out_of_that_resample() -> None:
    two, many = Sample(np.full(2, 4.0), np.arange(2)), Sample(np.full(50, 1.0), np.arange(10, 60))
    interval = bootstrap_mean([two, many], 2000, 0.95, seed=0)
    assert (interval.low, interval.high) == (1.0, 2.5)  # 1 without the first, 2.5 with both


def test_blocks_do_not_move_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [Sample(np.random.default_rng(n).normal(size=40), np.arange(40) + 20 * n) for n in range(2)]
    whole = bootstrap_mean(samples, 100, 0.95, seed=3)
    monkeypatch.setattr("vipolyqwen_core.evaluation.bootstrap.BLOCK_DRAWS", 1)
    single = bootstrap_mean(samples, 100, 0.95, seed=3)
    assert (single.low, single.high) == pytest.approx((whole.low, whole.high))  # sums of another order


def test_one_component_alone_proves_nothing() -> None:
    together = Sample(np.full(200, 0.4), np.zeros(200, dtype=np.int64))
    apart = Sample(np.full(200, 0.4), np.arange(200))
    interval = bootstrap_mean([together, apart], 100, 0.95, seed=0)
    assert (interval.mean, interval.low, interval.high) == (pytest.approx(0.4), -1.0, 1.0)


def test_each_pool_has_the_same_weight() -> None:
    small = Sample(np.ones(20), np.arange(20))
    large = Sample(np.zeros(500), np.arange(500))
    interval = bootstrap_mean([small, large], 100, 0.95, seed=0)
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_the_same_seed_gives_the_same_interval() -> None:
    sample = Sample(np.random.default_rng(3).random(50), np.arange(50))
    assert bootstrap_mean([sample], 200, 0.95, seed=4) == bootstrap_mean([sample], 200, 0.95, seed=4)


def test_an_empty_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_mean([Sample(np.empty(0), np.empty(0, dtype=np.int64))], 10, 0.95, seed=0)
