"""How sure a mean, or the difference of two means, is: bootstrap over linked groups of queries.

Questions on one picture stand or fall together, so whole components are drawn, not single queries; a
component is what the split keeps together. With one query a component this is the usual percentile bootstrap.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Sample:
    """Values of one pool, by query, and the component of each."""

    values: Floats
    """[Q]; for a paired comparison the differences."""
    clusters: NDArray[np.int64]
    """[Q]; equal numbers are drawn together."""

    @property
    def num_components(self) -> int:
        """How many there are to draw."""
        return len(np.unique(self.clusters))


def bootstrap_mean(samples: Sequence[Sample], resamples: int, confidence: float, seed: int) -> Interval:
    """Mean over the samples of the mean within each, with a percentile interval.

    Each sample is resampled on its own: every pool keeps its weight, however many queries it has. For a
    paired comparison pass differences, so that both systems are always drawn on the same queries. One
    component alone tells nothing about how components differ; its interval would have no width and prove
    anything. So with such a sample the interval is all that differences of shares can be, -1 to 1.

    Raises:
        ValueError: no sample, or an empty one
    Reference:
        Efron and Tibshirani 1993, chapter 13; clusters: Field and Welsh 2007
    """
    if not samples or any(len(sample.values) == 0 for sample in samples):
        raise ValueError("a bootstrap needs at least one value in each sample")
    mean = float(np.mean([np.mean(sample.values) for sample in samples]))
    if any(sample.num_components == 1 for sample in samples):
        return Interval(mean=mean, low=-1.0, high=1.0)
    rng = np.random.default_rng(seed)
    means = np.zeros(resamples)
    for sample in samples:
        _, cluster = np.unique(sample.clusters, return_inverse=True)
        sums = np.bincount(cluster, weights=sample.values)
        counts = np.bincount(cluster).astype(np.float64)
        for start in range(0, resamples, 100):  # bounded memory, whatever the number of components
            stop = min(start + 100, resamples)
            drawn = rng.integers(0, len(sums), size=(stop - start, len(sums)))
            means[start:stop] += sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    means /= len(samples)
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Interval(mean=mean, low=float(low), high=float(high))
