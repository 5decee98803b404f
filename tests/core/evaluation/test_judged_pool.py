"""What a system gains over another one, by query."""

from dataclasses import replace

import numpy as np

from tests.core.evaluation.test_retrieval import rows_of
from vipolyqwen_core.evaluation import results
from vipolyqwen_core.evaluation.judged_pool import JudgedPool
from vipolyqwen_core.evaluation.metrics import ACCURACY, PRIMARY
from vipolyqwen_core.evaluation.retrieval import build_pools, rank_pool


def test_a_gain_is_ours_less_theirs_with_the_component_of_each_query() -> None:
    rows = rows_of(*[("ocr", "vi", number, 10 + number, 0, None) for number in range(1, 4)])
    (pool,) = build_pools(replace(rows, component=np.array([5, 5, 8])), 0.5)
    assert pool.num_components == 2
    targets = np.eye(3, dtype=np.float32)
    rankings = {
        results.TRAINED: rank_pool(pool, targets, targets),
        results.CHAMPION: rank_pool(pool, targets[[1, 1, 2]], targets),  # takes the second for the first
    }
    gain = JudgedPool(pool, rankings, has_pictures=False).gain(results.CHAMPION)
    assert gain.values.tolist() == [1 - rankings[results.CHAMPION].by_query[PRIMARY][0], 0, 0]
    assert gain.values[0] > 0
    accuracy = JudgedPool(pool, rankings, has_pictures=False).gain(results.CHAMPION, ACCURACY)
    assert accuracy.values.tolist() == [1, 0, 0]
    assert gain.clusters.tolist() == [5, 5, 8]
