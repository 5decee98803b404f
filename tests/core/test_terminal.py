"""What a terminal shows of an evaluation."""

import io
import re
from dataclasses import replace

from rich.console import Console

from tests.core.small_evaluation import evaluation, pool
from vipolyqwen_core.contract import Task
from vipolyqwen_core.evaluation.bootstrap import Interval
from vipolyqwen_core.evaluation.results import PLAIN, TRAINED, UNTRAINED, Evaluation, SimilarityResult
from vipolyqwen_core.terminal import evaluation_tables


def shown(found: Evaluation) -> str:
    """What a terminal shows, spaces folded; it fits 80 columns."""
    file = io.StringIO()
    Console(width=200, file=file).print(evaluation_tables(found))
    assert max(map(len, file.getvalue().splitlines())) <= 80
    return re.sub(" +", " ", file.getvalue())


def test_the_mean_stands_below_the_pools_with_its_gains() -> None:
    found = evaluation(pool(swapped=None), over_champion=Interval(0.02, -0.01, 0.05))
    lines = shown(found).splitlines()
    assert "mean 0.600 0.580 0.050 0.200 0.030 " in lines
    assert "gain over untrained: +0.200 [+0.100, +0.300]" in lines
    assert "gain over champion: +0.020 [-0.010, +0.050]" in lines
    assert not [line for line in shown(evaluation(pool())).splitlines() if "gain over champion" in line]


def test_a_star_marks_pools_outside_the_mean_where_there_are_any() -> None:
    choice = pool(Task.VQA_SINGLE, is_choice=True)
    page = shown(evaluation(pool(), choice))
    assert "vqa_single/vi *" in page
    assert "ocr/vi *" not in page
    assert "* outside the mean: too small to count, or a choice between two answers" in page
    assert "*" not in shown(evaluation(pool()))
    small = replace(evaluation(replace(pool(), is_large=False)), enough=False)
    assert "No pool is large enough to count: the mean is over all of them" in shown(small)


def test_a_system_has_one_name_in_all_tables() -> None:
    scored = SimilarityResult(
        "vi", 200, True, {name: {"spearman": 0.5} for name in (TRAINED, PLAIN, UNTRAINED)}
    )
    page = shown(replace(evaluation(pool()), similarities=(scored,)))
    assert "this no un- swap- recall\npool pairs model prefix trained BM25 ped chance @1" in page
    assert "language pairs this model no prefix untrained" in page
