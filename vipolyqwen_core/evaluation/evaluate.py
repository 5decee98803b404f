"""Judge a trained model on the evaluation pairs, beside chance, BM25, itself untrained, and the champion."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vipolyqwen_core.config import EvaluationSettings, TrainingRun
from vipolyqwen_core.contract import Side, Split, Task
from vipolyqwen_core.evaluation import REPORT_FILE, results
from vipolyqwen_core.evaluation.baselines import Bm25, untrained_embedder
from vipolyqwen_core.evaluation.bootstrap import MIN_COMPONENTS, Interval, bootstrap_mean
from vipolyqwen_core.evaluation.encoding import EvaluationPairs, RowVectors, swap_partners
from vipolyqwen_core.evaluation.judged_pool import JudgedPool
from vipolyqwen_core.evaluation.metrics import PRIMARY, correlation, judging_metric
from vipolyqwen_core.evaluation.promotion import decide
from vipolyqwen_core.evaluation.report import write_report
from vipolyqwen_core.evaluation.results import Evaluation, PoolResult, SimilarityResult
from vipolyqwen_core.evaluation.retrieval import (
    Pool,
    Rows,
    build_cross_lingual_pools,
    build_pools,
    rank_pool,
    rank_pool_by,
)
from vipolyqwen_core.serving.encoder import ViPolyQwenEmbedder, slice_vectors
from vipolyqwen_core.serving.stored_sides import StoredSides, read_split
from vipolyqwen_core.training.identity import data_version

logger = logging.getLogger(__name__)


def evaluate(
    run: TrainingRun,
    model: Path,
    champion: Path | None,
    output: Path,
    champion_is_apart: bool = False,
    rival: str = results.CHAMPION,
    decides: bool = True,
    decided: str | None = None,
) -> Evaluation:
    """Scores of a model on the evaluation pairs of its run; writes `evaluation.json` and `report.html`.

    The split is sticky, so neither this model nor any earlier champion was trained on these pairs, unless
    that is of another split. No score depends on `batch_tokens`, but for the rounding of a model in bfloat16.

    Args:
        champion_is_apart: whether the champion is of another split
        rival: what the champion is called
        decides: whether the registry decides by it; else the report tells of no promotion
        decided: what the registry decided before; the report tells this, not what would be decided now
    Raises:
        ValueError: the training set holds no evaluation pair that can be ranked, or was built anew meanwhile
    """
    started = time.monotonic()
    settings = run.recipe.evaluation
    version = data_version(run.training_set)
    table = read_split(run.training_set, Split.EVAL)
    pairs = EvaluationPairs(table, StoredSides(run.training_set, Split.EVAL, version), settings.batch_tokens)
    positive_score = run.recipe.objective.positive_score
    pools = build_pools(pairs.rows, positive_score)
    if not pools:
        raise ValueError(
            f"{table.num_rows} evaluation pairs in {run.training_set} make no pool with two targets: "
            "there is nothing to rank; add data, or raise split.eval_share, which is that of new rows"
        )
    embedder = ViPolyQwenEmbedder.from_pretrained(model)
    vectors = _vectors(run, embedder, champion, pairs)
    judged = [_judge(pool, vectors, pairs, embedder, settings.seed) for pool in pools]
    cross = [_judge(pool, vectors, pairs) for pool in build_cross_lingual_pools(pairs.rows, positive_score)]
    counted, enough = _counted(judged, settings)
    pool_results = tuple(_pool_result(each, settings, each in counted) for each in judged)
    evaluation = Evaluation(
        run_name=run.run_name,
        model=str(model.resolve()),
        champion=None if champion is None else str(champion.resolve()),
        champion_is_apart=champion_is_apart,
        rival=rival,
        data_version=version or "unknown",
        num_rows=table.num_rows,
        rows_by_task=_rows_by_task(pairs.rows),
        primary_metric=PRIMARY,
        primary=_primary(counted),
        enough=enough,
        gain_over_untrained=_gain(counted, results.UNTRAINED, settings),
        gain_over_champion=None if champion is None else _gain(counted, results.CHAMPION, settings),
        pools=pool_results,
        cross_lingual=tuple(_pool_result(each, settings, counts=False) for each in cross),
        similarities=_similarities(pairs, vectors, settings),
        matryoshka=_matryoshka(counted, run.recipe.model.matryoshka_dims, vectors[results.TRAINED]),
        verdict=results.judge_pools(pool_results, enough),
        seconds=time.monotonic() - started,
    )
    evaluation.write(output)
    decision = decide(evaluation, run.recipe.registry) if decides and decided is None else None
    write_report(evaluation, judged, run, pairs, vectors, embedder, output / REPORT_FILE, decision, decided)
    logger.info("evaluated %d pairs in %.0f s: %s", table.num_rows, evaluation.seconds, output)
    return evaluation


def _vectors(
    run: TrainingRun, embedder: ViPolyQwenEmbedder, champion: Path | None, pairs: EvaluationPairs
) -> dict[str, RowVectors]:
    """System -> vectors of all pairs. At most one more model is in memory beside the one that is judged."""
    trained, plain = pairs.encode(embedder, (True, False), results.TRAINED)
    logger.info("encoded %d evaluation pairs with and without prefix", len(pairs.rows))
    (untrained,) = pairs.encode(untrained_embedder(run), (True,), results.UNTRAINED)
    vectors = {results.TRAINED: trained, results.PLAIN: plain, results.UNTRAINED: untrained}
    if champion is not None:
        rival, rival_plain = pairs.encode(
            ViPolyQwenEmbedder.from_pretrained(champion), (True, False), results.CHAMPION
        )
        vectors |= {results.CHAMPION: rival, results.CHAMPION_PLAIN: rival_plain}
    return vectors


def _judge(
    pool: Pool,
    vectors: dict[str, RowVectors],
    pairs: EvaluationPairs,
    swapping: ViPolyQwenEmbedder | None = None,
    seed: int = 0,
) -> JudgedPool:
    """Every system's ranking of a pool: models, BM25, and `swapping` with the pictures exchanged."""
    rankings = {system: rank_pool(pool, both.query, both.target) for system, both in vectors.items()}
    asked, bm25 = pairs.texts(pool.queries, Side.QUERY), Bm25(pairs.texts(pool.targets, Side.TARGET))
    rankings[results.BM25] = rank_pool_by(pool, lambda rows: bm25.similarity(asked[rows]))
    pictures = pairs.picture_ids(pool.queries)
    if swapping is not None and all(pictures):
        # A query that finds no partner with other pictures keeps its own, which speaks against the model.
        places, partners = swap_partners(pictures, seed)
        queries = vectors[results.TRAINED].query.copy()
        queries[pool.queries[places]] = pairs.encode_swapped(
            swapping, pool.queries[places], pool.queries[partners]
        )
        rankings[results.SWAPPED] = rank_pool(pool, queries, vectors[results.TRAINED].target)
    return JudgedPool(pool, rankings, has_pictures=all(pictures))


def _is_large(pool: Pool, settings: EvaluationSettings) -> bool:
    enough_targets = pool.is_choice or len(pool.targets) >= settings.min_distinct_targets
    return enough_targets and _are_enough(pool.num_pairs, pool.num_components, settings)


def _are_enough(num_pairs: int, num_components: int, settings: EvaluationSettings) -> bool:
    return num_pairs >= settings.min_pairs and num_components >= MIN_COMPONENTS


def _counted(judged: Sequence[JudgedPool], settings: EvaluationSettings) -> tuple[list[JudgedPool], bool]:
    """Pools that make the primary metric, and whether they are large enough; if none is, the next best."""
    retrieval = [each for each in judged if not each.pool.is_choice]
    large = [each for each in retrieval if _is_large(each.pool, settings)]
    if large:
        return large, True
    several = [each for each in retrieval if len(each.pool.targets) > 2]
    spread = [each for each in several if each.pool.num_components > 1]
    return spread or several or list(judged), False


def _pool_result(judged: JudgedPool, settings: EvaluationSettings, counts: bool) -> PoolResult:
    pool = judged.pool
    metric = judging_metric(pool.is_choice)
    scores = {system: ranking.means for system, ranking in judged.rankings.items()}
    return PoolResult(
        task=pool.task,
        language=pool.language,
        num_pairs=pool.num_pairs,
        num_queries=len(pool.queries),
        num_targets=len(pool.targets),
        num_components=pool.num_components,
        is_choice=pool.is_choice,
        has_pictures=judged.has_pictures,
        is_large=_is_large(pool, settings),
        counts=counts,
        scores=scores | {results.CHANCE: pool.chance()},
        gain_over_untrained=_gain([judged], results.UNTRAINED, settings, metric),
        gain_over_champion=(
            _gain([judged], results.CHAMPION, settings, metric) if results.CHAMPION in scores else None
        ),
    )


def _gain(
    judged: Sequence[JudgedPool], rival: str, settings: EvaluationSettings, metric: str = PRIMARY
) -> Interval:
    return bootstrap_mean(
        [each.gain(rival, metric) for each in judged],
        settings.bootstrap_samples,
        settings.confidence,
        settings.seed,
    )


def _primary(counted: Sequence[JudgedPool]) -> dict[str, float]:
    """System -> mean of the primary metric over pools. Swapped pictures are no system to compare with."""
    systems = set.intersection(*(set(each.rankings) for each in counted)) - {results.SWAPPED}
    means = {
        system: float(np.mean([each.rankings[system].means[PRIMARY] for each in counted]))
        for system in results.SYSTEMS
        if system in systems
    }
    return means | {results.CHANCE: float(np.mean([each.pool.chance()[PRIMARY] for each in counted]))}


def _rows_by_task(rows: Rows) -> dict[Task, int]:
    numbers = {task: int((rows.task == task.value).sum()) for task in Task}
    return {task: number for task, number in numbers.items() if number}


def _similarities(
    pairs: EvaluationPairs, vectors: dict[str, RowVectors], settings: EvaluationSettings
) -> tuple[SimilarityResult, ...]:
    """How cosines, and BM25 among the targets of these pairs, follow the scores of scored pairs, by
    language."""
    rows, found = pairs.rows, []
    scored = ~np.isnan(rows.score)
    for language in sorted(set(rows.language[scored])):
        places = np.flatnonzero(scored & (rows.language == language))
        scores = {
            system: correlation(np.sum(both.query[places] * both.target[places], axis=1), rows.score[places])
            for system, both in vectors.items()
        }
        bm25 = Bm25(pairs.texts(places, Side.TARGET)).similarity_of_pairs(pairs.texts(places, Side.QUERY))
        scores[results.BM25] = correlation(bm25, rows.score[places])
        is_large = _are_enough(len(places), len(np.unique(rows.component[places])), settings)
        found.append(SimilarityResult(language, len(places), is_large, scores))
    return tuple(found)


def _matryoshka(counted: Sequence[JudgedPool], dims: Sequence[int], vectors: RowVectors) -> dict[int, float]:
    """Mean primary metric of each slice that was trained, over the pools that count."""
    found = {}
    for dim in dims:
        query, target = (slice_vectors(side, dim) for side in (vectors.query, vectors.target))
        scores = [rank_pool(each.pool, query, target).means[PRIMARY] for each in counted]
        found[dim] = float(np.mean(scores))
    return found
