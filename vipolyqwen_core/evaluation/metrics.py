"""Numbers of a ranking and of scored pairs, on plain arrays.

Q queries rank N candidates. Several candidates may be right answers to one query.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.sparse import csr_array
from scipy.special import gammaln

DEPTH: Final = 10
"""Ranks are looked at down to here."""

CUTOFFS: Final = (1, 5, 10)
"""The k of `recall@k`."""

PRIMARY: Final = "mrr@10"
"""The metric that decides."""

ACCURACY: Final = "recall@1"
"""The metric of a pool of two answers: the share of questions that found the right one."""

TIE_TOLERANCE: Final = 1e-5
"""Similarities closer than this are a tie, which counts against the model. It is far above the rounding
that moves with the make-up of a batch in float32 (1e-7), so a score does not move with it; and a collapsed
model, whose similarities are all alike, gets nothing for the order in which candidates happen to lie. In
bfloat16 that rounding reaches 1e-3, more than lies between many candidates: no tolerance tells them apart."""

BLOCK_SIMILARITIES: Final = 4_000_000
"""Similarities that are ranked at once: some 150 MB."""

Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]
Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]


def judging_metric(is_choice: bool) -> str:
    """The metric that a pool is judged by."""
    return ACCURACY if is_choice else PRIMARY


def rank_by(
    similarity: Callable[[slice], NDArray[np.floating]], relevant: csr_array, excluded: Ints
) -> tuple[Ints, Mask]:
    """The nearest candidates of each query, best first, and which of them are right answers; ties go against
    these.

    Similarities are asked for by a block of queries at a time: memory does not grow with Q x N.

    Shapes:
        similarity: slice of queries -> [B, N]; relevant: [Q, N]; excluded: [Q] columns, -1: none
        returns: [Q, min(10, N)] columns, -1 where fewer candidates are left than ranks; and whether right
    """
    num_queries, num_targets = relevant.shape
    at_once = max(1, BLOCK_SIMILARITIES // num_targets)
    blocks, hit = [], []
    for start in range(0, num_queries, at_once):
        rows = slice(start, start + at_once)
        right = relevant[rows].toarray()
        left_out = excluded[rows, None] == np.arange(num_targets)
        blocks.append(rank_similarity(similarity(rows), right, left_out))
        hit.append(hits(blocks[-1], right))
    return np.concatenate(blocks), np.concatenate(hit)


def rank_similarity(
    similarity: NDArray[np.floating], relevant: Mask, excluded: Mask | None = None
) -> NDArray[np.int64]:
    """As `rank_by`, from a whole matrix of similarities [Q, N]; relevant, excluded: [Q, N]."""
    lowered = similarity.astype(np.float64) - TIE_TOLERANCE * relevant
    if excluded is not None:
        lowered[excluded] = -np.inf
    depth = min(DEPTH, lowered.shape[1])
    least = np.partition(lowered, -depth, axis=1)[:, [-depth]]
    rows, columns = np.nonzero(lowered >= least)
    # Stable: candidates that are equal keep the order of the pool.
    columns = columns[np.lexsort((-lowered[rows, columns], rows))]
    firsts = np.searchsorted(rows, np.arange(len(lowered)))
    nearest = columns[firsts[:, None] + np.arange(depth)].astype(np.int64)
    nearest[np.isneginf(np.take_along_axis(lowered, nearest, axis=1))] = -1
    return nearest


def hits(nearest: NDArray[np.int64], relevant: Mask) -> Mask:
    """Which of the ranked candidates are right answers, [Q, depth]."""
    return np.take_along_axis(relevant, np.maximum(nearest, 0), axis=1) & (nearest >= 0)


def recall(hit: Mask, k: int) -> Floats:
    """1 where a right answer is among the first k, by query [Q].

    With one right answer a query this is recall in every sense; with several it is the share of queries
    that are answered (also called hit rate or success), which is what `chance_recall` foresees.
    """
    return np.asarray(hit[:, :k].any(axis=1), dtype=np.float64)


def reciprocal_rank(hit: Mask) -> Floats:
    """1 / rank of the first right answer, 0 beyond the depth, by query [Q]."""
    return np.where(hit.any(axis=1), 1.0 / (hit.argmax(axis=1) + 1), 0.0)


def ndcg(hit: Mask, num_relevant: NDArray[np.int64]) -> Floats:
    """Normalised discounted cumulative gain with gains 0 and 1, by query [Q].

    Reference:
        Järvelin and Kekäläinen 2002, with the discount 1 / log2(rank + 1)
    """
    discount = 1.0 / np.log2(np.arange(2, hit.shape[1] + 2))
    ideal = np.concatenate(([0.0], np.cumsum(discount)))[np.minimum(num_relevant, hit.shape[1])]
    return np.asarray(np.divide(hit @ discount, ideal, out=np.zeros(len(hit)), where=ideal > 0))


def query_scores(hit: Mask, num_relevant: NDArray[np.int64]) -> dict[str, Floats]:
    """All retrieval metrics by query, each [Q]: `recall@1`, `recall@5`, `recall@10`, `mrr@10`, `ndcg@10`."""
    return {
        **{f"recall@{k}": recall(hit, k) for k in CUTOFFS},
        PRIMARY: reciprocal_rank(hit),
        f"ndcg@{DEPTH}": ndcg(hit, num_relevant),
    }


def chance_recall(num_relevant: NDArray[np.int64], num_candidates: NDArray[np.int64], k: int) -> float:
    """Expected `recall@k` of a random order: 1 - C(N - r, k) / C(N, k), mean over queries [Q].

    At k = 1 this is the mean number of right answers over the size of the pool.
    """
    r, n = num_relevant.astype(np.float64), num_candidates.astype(np.float64)
    k_ = np.minimum(float(k), n)
    wrong = n - r
    possible = wrong >= k_
    safe = np.maximum(wrong, k_)
    log_miss = gammaln(safe + 1) - gammaln(safe - k_ + 1) - gammaln(n + 1) + gammaln(n - k_ + 1)
    return float(np.mean(1.0 - np.where(possible, np.exp(log_miss), 0.0))) if len(r) else 0.0


def chance_mrr(num_relevant: NDArray[np.int64], num_candidates: NDArray[np.int64]) -> float:
    """Expected `mrr@10` of a random order: sum over ranks of P(first right answer is there) / rank.

    Args:
        num_relevant, num_candidates: [Q], of each query
    """
    reached = [0.0] + [chance_recall(num_relevant, num_candidates, k) for k in range(1, DEPTH + 1)]
    return float(sum((reached[k] - reached[k - 1]) / k for k in range(1, DEPTH + 1)))


def correlation(predicted: NDArray[np.floating], score: NDArray[np.floating]) -> dict[str, float]:
    """`spearman` and `pearson` between the similarities of n pairs and their given scores, both [n].

    Empty where one of them is constant, or of fewer than three pairs.
    """
    if len(score) < 3 or np.ptp(predicted) == 0 or np.ptp(score) == 0:
        return {}
    return {
        "spearman": float(stats.spearmanr(predicted, score).statistic),
        "pearson": float(stats.pearsonr(predicted, score).statistic),
    }
