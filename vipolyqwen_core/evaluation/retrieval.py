"""Pools: what is searched when a model is judged. One pool is one task in one language.

The candidates of a pool are its distinct targets, its queries the distinct queries of pairs that are
positives. Every target of a pair with the same query, or with the same declared `positive_key`, is a right
answer. A candidate that is the query itself is left out, as in training. Scored pairs below the positive
score ask nothing, but their targets stay candidates.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import csr_array

from vipolyqwen_core.contract import Task
from vipolyqwen_core.evaluation.metrics import (
    CUTOFFS,
    PRIMARY,
    Floats,
    Ints,
    Vectors,
    chance_mrr,
    chance_recall,
    query_scores,
    rank_by,
)
from vipolyqwen_core.hashes import Hashes
from vipolyqwen_core.objectives.positives import is_positive


@dataclass(frozen=True)
class Rows:
    """What pools are made of: columns of `eval.arrow`, each [R]."""

    task: NDArray[np.object_]
    language: NDArray[np.object_]
    query: Hashes
    """Identity of the query side."""
    target: Hashes
    """Identity of the target side."""
    positive: Hashes
    """Identity of the declared equivalence, 0: none."""
    score: Floats
    """NaN where the pair has none."""
    component: Ints
    """Numbered; rows of one component are linked."""

    def __len__(self) -> int:
        return len(self.task)


def read_rows(table: pa.Table) -> Rows:
    """The columns that pools need, from a table of the training set."""
    _, component = np.unique(
        np.asarray(table.column("component").to_pylist(), dtype=object).astype(str), return_inverse=True
    )
    score = table.column("score").to_numpy(zero_copy_only=False)
    return Rows(
        task=np.asarray(table.column("task").to_pylist(), dtype=object),
        language=np.asarray(table.column("language").to_pylist(), dtype=object),
        query=table.column("query_hash").to_numpy(),
        target=table.column("target_hash").to_numpy(),
        positive=table.column("positive_hash").to_numpy(),
        score=np.asarray(score, dtype=np.float64),
        component=component.astype(np.int64),
    )


@dataclass(frozen=True, eq=False)
class Pool:
    """Queries, candidates and right answers. Queries and candidates are named by a row that has them."""

    task: Task
    language: str
    """A language; `vi>en` across two."""
    num_pairs: int
    """Pairs of the pool that are positives."""
    queries: Ints
    """[Q] rows"""
    targets: Ints
    """[N] rows"""
    relevant: csr_array
    """[Q, N] of bool, sparse: a large pool has far more candidates than right answers"""
    excluded: Ints
    """[Q] column of the candidate that is the query itself; -1: none"""
    clusters: Ints
    """[Q] component of each query"""

    @property
    def name(self) -> str:
        """`ocr/vi`"""
        return f"{self.task.value}/{self.language}"

    @property
    def is_choice(self) -> bool:
        """Whether all questions have the same two answers: judged by accuracy, outside the mean."""
        return len(self.targets) <= 2 < self.num_pairs

    @property
    def num_components(self) -> int:
        """Linked groups of queries."""
        return len(np.unique(self.clusters))

    @cached_property
    def num_relevant(self) -> Ints:
        """[Q] right answers of each query."""
        return np.asarray(np.diff(self.relevant.indptr), dtype=np.int64)

    @cached_property
    def num_candidates(self) -> Ints:
        """[Q] candidates of each query."""
        return len(self.targets) - (self.excluded >= 0).astype(np.int64)

    def chance(self) -> dict[str, float]:
        """What a random order scores."""
        return {
            **{f"recall@{k}": chance_recall(self.num_relevant, self.num_candidates, k) for k in CUTOFFS},
            PRIMARY: chance_mrr(self.num_relevant, self.num_candidates),
        }


@dataclass(frozen=True, eq=False)
class Ranking:
    """What one system made of one pool."""

    nearest: Ints
    """[Q, min(10, N)] columns of the pool's targets, best first; -1: none left"""
    by_query: dict[str, Floats]
    """Metric -> [Q]"""
    means: dict[str, float] = field(init=False)
    """Metric -> mean over queries"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "means", {name: float(v.mean()) for name, v in self.by_query.items()})


def rank_pool(pool: Pool, queries: Vectors, targets: Vectors) -> Ranking:
    """Rank a pool by the dot products of vectors.

    Shapes:
        queries, targets: [R, D], the vectors of each row's sides
    """
    asked, candidates = queries[pool.queries], targets[pool.targets]
    return rank_pool_by(pool, lambda some: asked[some] @ candidates.T)


def rank_pool_by(pool: Pool, similarity: Callable[[slice], NDArray[np.floating]]) -> Ranking:
    """Rank a pool by a function that gives the similarities [B, N] of some of its queries."""
    nearest, hit = rank_by(similarity, pool.relevant, pool.excluded)
    return Ranking(nearest, query_scores(hit, pool.num_relevant))


def build_pools(rows: Rows, positive_score: float) -> list[Pool]:
    """One pool for each task and language that has a positive pair, in the order of tasks and languages."""
    pools = []
    for task in Task:
        for language in sorted(set(rows.language[rows.task == task.value])):
            members = np.flatnonzero((rows.task == task.value) & (rows.language == language))
            pool = _pool(rows, task, language, members, members, positive_score)
            if pool is not None:
                pools.append(pool)
    return pools


def build_cross_lingual_pools(rows: Rows, positive_score: float) -> list[Pool]:
    """Pools that ask in one language and answer in another, where a `positive_key` joins the two."""
    pools = []
    for task in Task:
        of_task = rows.task == task.value
        for asked, answered in permutations(sorted(set(rows.language[of_task])), 2):
            askers = np.flatnonzero(of_task & (rows.language == asked))
            answerers = np.flatnonzero(of_task & (rows.language == answered))
            shared = np.intersect1d(rows.positive[askers], rows.positive[answerers])
            askers = askers[np.isin(rows.positive[askers], shared[shared != 0])]
            pool = _pool(rows, task, f"{asked}>{answered}", askers, answerers, positive_score)
            if pool is not None:
                pools.append(pool)
    return pools


def _pool(
    rows: Rows, task: Task, language: str, askers: Ints, answerers: Ints, positive_score: float
) -> Pool | None:
    """The pool of some rows that ask and some that answer; None where nothing can be asked."""

    def positives(members: Ints) -> Ints:
        return members[is_positive(rows.score[members], positive_score)]

    asking, answering = positives(askers), positives(answerers)
    query_ids, first_query, query_of = np.unique(rows.query[asking], return_index=True, return_inverse=True)
    target_ids, first_target = np.unique(rows.target[answerers], return_index=True)
    if len(query_ids) == 0 or len(target_ids) < 2:
        return None
    shape = len(query_ids), len(target_ids)
    columns = np.searchsorted(target_ids, rows.target[answering])
    by_query = _answers(np.arange(shape[0]), query_ids, rows.query[answering], columns, shape)
    keyed = rows.positive[asking] != 0
    by_key = _answers(query_of[keyed], rows.positive[asking][keyed], rows.positive[answering], columns, shape)
    places = np.minimum(np.searchsorted(target_ids, query_ids), shape[1] - 1)
    excluded = np.where(target_ids[places] == query_ids, places, -1)
    own = np.flatnonzero(excluded >= 0)
    relevant = (by_query + by_key) > _marked(own, excluded[own], shape)  # right, and not the query itself
    relevant.sort_indices()
    answerable = np.diff(relevant.indptr) > 0
    if not answerable.any():
        return None
    return Pool(
        task=task,
        language=language,
        num_pairs=len(asking),
        queries=asking[first_query][answerable],
        targets=answerers[first_target],
        relevant=relevant[answerable],
        excluded=excluded[answerable],
        clusters=rows.component[asking[first_query]][answerable],
    )


def _answers(
    queries: Ints,
    asked: Hashes,
    answered: Hashes,
    columns: Ints,
    shape: tuple[int, int],
) -> csr_array:
    """Which targets answer which queries: those of the rows that bear the same number.

    Shapes:
        queries, asked: [K] queries and their numbers; answered: [A] numbers of the rows that answer;
        columns: [A] their targets
        returns: [Q, N], the shape that is given
    """
    known, place = np.unique(answered, return_inverse=True)
    is_known = np.isin(asked, known)
    asks = _marked(queries[is_known], np.searchsorted(known, asked[is_known]), (shape[0], len(known)))
    return asks @ _marked(place, columns, (len(known), shape[1]))


def _marked(rows: Ints, columns: Ints, shape: tuple[int, int]) -> csr_array:
    """True at some places, which may be named more than once."""
    places = rows.astype(np.int32), columns.astype(np.int32)  # places of 64 bits double the memory
    return csr_array((np.ones(len(rows), dtype=bool), places), shape=shape)
