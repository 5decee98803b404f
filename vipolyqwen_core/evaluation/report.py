"""The report: one HTML file that needs nothing else, for a person who decides about a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vipolyqwen_core.config import TrainingRun
from vipolyqwen_core.evaluation import plots, results
from vipolyqwen_core.evaluation.bootstrap import MIN_COMPONENTS
from vipolyqwen_core.evaluation.encoding import EvaluationPairs, RowVectors
from vipolyqwen_core.evaluation.gallery import build_gallery
from vipolyqwen_core.evaluation.html_page import write_page
from vipolyqwen_core.evaluation.judged_pool import JudgedPool
from vipolyqwen_core.evaluation.promotion import Decision
from vipolyqwen_core.evaluation.results import Evaluation
from vipolyqwen_core.serving.encoder import ViPolyQwenEmbedder
from vipolyqwen_core.training.result import METRICS_FILE
from vipolyqwen_core.training.tracking import read_metrics

TEMPLATE = "report.html.jinja"
MAX_PAIRS = 20_000
"""Pairs drawn for each of the two histograms of similarities: of right pairs, and of others."""


def write_report(
    evaluation: Evaluation,
    judged: Sequence[JudgedPool],
    run: TrainingRun,
    pairs: EvaluationPairs,
    vectors: Mapping[str, RowVectors],
    embedder: ViPolyQwenEmbedder,
    path: Path,
    decision: Decision | None,
    decided: str | None = None,
) -> None:
    """Write the report of an evaluation.

    Args:
        decision: what the registry will do; None: the report tells of no promotion
        decided: what it did before
    """
    settings = run.recipe.evaluation
    trained = vectors[results.TRAINED]
    retrieval = [pool for pool in evaluation.pools if not pool.is_choice]
    counted = {pool.name for pool in evaluation.counted()}
    histograms = {
        each.pool.name: similarities(each, trained, settings.seed)
        for each in judged
        if each.pool.name in counted
    }
    rival, labels = evaluation.rival, evaluation.labels
    systems = {name: text.replace(results.CHAMPION, rival) for name, text in results.SYSTEMS.items()}
    write_page(
        path,
        Path(__file__).parent / TEMPLATE,
        evaluation=evaluation,
        run=run,
        settings=settings,
        min_components=MIN_COMPONENTS,
        decision=decision,
        decided=decided,
        systems={name: text for name, text in systems.items() if _has(evaluation, name)},
        labels=labels,
        rival=rival,
        names=results,
        retrieval=retrieval,
        choices=[pool for pool in evaluation.pools if pool.is_choice],
        loss_plot=plots.loss_curves(read_metrics(run.output / METRICS_FILE)),
        bars=plots.recall_bars([pool for pool in retrieval if pool.counts], labels),
        histogram=plots.similarity_histograms(histograms) if histograms else None,
        gallery=build_gallery(judged, pairs, trained, embedder, settings.gallery_queries, settings.seed),
    )


def similarities(
    judged: JudgedPool, vectors: RowVectors, seed: int
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Cosines of right pairs of a pool, and of other pairs of it, drawn at random.

    A declared key makes each of its targets right for each of its queries: right pairs may be millions.
    """
    pool = judged.pool
    queries, targets = vectors.query[pool.queries], vectors.target[pool.targets]
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(queries), MAX_PAIRS)
    columns = rng.integers(0, len(targets), MAX_PAIRS)
    other = ~pool.relevant[rows, columns] & (pool.excluded[rows] != columns)
    right_rows, right_columns = pool.relevant.nonzero()
    drawn = rng.permutation(len(right_rows))[:MAX_PAIRS]
    right_rows, right_columns = right_rows[drawn], right_columns[drawn]
    right = np.sum(queries[right_rows] * targets[right_columns], axis=1)
    return right, np.sum(queries[rows[other]] * targets[columns[other]], axis=1)


def _has(evaluation: Evaluation, system: str) -> bool:
    return any(system in pool.scores for pool in evaluation.pools)
