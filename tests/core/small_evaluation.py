"""An evaluation of made-up numbers."""

from vipolyqwen_core.contract import Task
from vipolyqwen_core.evaluation import results
from vipolyqwen_core.evaluation.bootstrap import Interval
from vipolyqwen_core.evaluation.metrics import PRIMARY
from vipolyqwen_core.evaluation.results import Evaluation, PoolResult, Verdict

GAIN = Interval(0.2, 0.1, 0.3)


def pool(
    task: Task = Task.OCR,
    trained: float = 0.6,
    champion: float | None = None,
    swapped: float | None = 0.1,
    recall: float = 0.5,
    gain: Interval = GAIN,
    is_choice: bool = False,
) -> PoolResult:
    others = {"recall@5": 0.7, "recall@10": 0.8, "ndcg@10": 0.65}
    scores = {
        results.TRAINED: {PRIMARY: trained, "recall@1": recall, **others},
        results.PLAIN: {PRIMARY: trained, "recall@1": recall, **others},
        results.UNTRAINED: {PRIMARY: 0.05, "recall@1": 0.02, **others},
        results.BM25: {PRIMARY: 0.4, "recall@1": 0.3, **others},
        results.CHANCE: {PRIMARY: 0.03, "recall@1": 0.02, **others},
    }
    if champion is not None:
        scores[results.CHAMPION] = {PRIMARY: champion, "recall@1": champion}
    if swapped is not None:
        scores[results.SWAPPED] = {PRIMARY: swapped, "recall@1": swapped}
    return PoolResult(
        task=task,
        language="vi",
        num_pairs=200,
        num_queries=200,
        num_targets=2 if is_choice else 80,
        num_components=100,
        is_choice=is_choice,
        has_pictures=swapped is not None,
        is_large=True,
        counts=not is_choice,
        scores=scores,
        gain_over_untrained=gain,
        gain_over_champion=None,
    )


MEANS = {
    results.TRAINED: 0.6,
    results.PLAIN: 0.58,
    results.UNTRAINED: 0.05,
    results.BM25: 0.2,
    results.CHANCE: 0.03,
}


def evaluation(
    *pools: PoolResult, over_untrained: Interval = GAIN, over_champion: Interval | None = None
) -> Evaluation:
    return Evaluation(
        run_name="run",
        model="model",
        champion=None if over_champion is None else "champion",
        data_version="v",
        num_rows=200,
        rows_by_task={each.task: 200 for each in pools},
        primary_metric=PRIMARY,
        primary=MEANS,
        enough=True,
        gain_over_untrained=over_untrained,
        gain_over_champion=over_champion,
        pools=pools,
        cross_lingual=(),
        similarities=(),
        matryoshka={},
        verdict=Verdict(True, (), ()),
        seconds=1.0,
    )
