"""What the report says and draws of pools."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.sparse import csr_array

from tests.core.small_evaluation import GAIN, evaluation, pool
from vipolyqwen_core.config import TrainingRun
from vipolyqwen_core.contract import Task
from vipolyqwen_core.evaluation import plots
from vipolyqwen_core.evaluation.encoding import RowVectors
from vipolyqwen_core.evaluation.judged_pool import JudgedPool
from vipolyqwen_core.evaluation.plots import loss_curves
from vipolyqwen_core.evaluation.promotion import decide
from vipolyqwen_core.evaluation.report import MAX_PAIRS, similarities, write_report
from vipolyqwen_core.evaluation.results import TRAINED, Evaluation
from vipolyqwen_core.evaluation.retrieval import Pool
from vipolyqwen_core.recipes import demo


def pool_of(relevant: np.ndarray) -> JudgedPool:
    """A pool in which row i asks query i and has target i."""
    rows = np.arange(len(relevant))
    nothing = np.full(len(rows), -1)
    pool = Pool(Task.INSTR, "vi", len(rows), rows, rows, csr_array(relevant), nothing, clusters=rows)
    return JudgedPool(pool, {}, has_pictures=False)


@pytest.mark.parametrize("lines", [[], [{"step": 1, "loss": math.nan}]])
def test_no_number_is_no_plot_of_the_loss(lines: list[dict[str, float]]) -> None:
    assert loss_curves(lines) is None


def test_one_line_of_metrics_is_drawn_as_a_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "_data_uri", lambda figure: drawn.append(figure) or "data:")
    assert loss_curves([{"step": 5, "loss": 2.0, "loss/ocr": 1.5}]) == "data:"
    dots = [(line.get_marker(), line.get_ydata().tolist()) for axes in drawn[0].axes for line in axes.lines]
    assert dots == [("o", [2.0]), ("o", [1.5])]


def test_bars_are_of_the_recall_that_stands_above_them(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "_data_uri", lambda figure: drawn.append(figure) or "data:")
    found = evaluation(pool(recall=0.5))
    plots.recall_bars(found.pools, found.labels)
    widths = {axes.get_title("left"): [bar.get_width() for bar in axes.patches] for axes in drawn[0].axes}
    assert widths == {"recall@1": [0.5, 0.5, 0.02, 0.3], "recall@10": [0.8] * 4}


def test_histograms_tell_right_pairs_from_others_also_below_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "_data_uri", lambda figure: drawn.append(figure) or "data:")
    cosines = {"right pairs": [0.25, 0.9], "other pairs": [-0.5, 0.1]}
    plots.similarity_histograms({"ocr/vi": (np.array([0.25, 0.9]), np.array([-0.5, 0.1]))})
    for bars in drawn[0].axes[0].patches:
        heights, edges, _ = bars.get_data()
        assert heights[heights > 0].tolist() == [0.5, 0.5]
        assert edges[:-1][heights > 0] == pytest.approx(
            cosines.pop(bars.get_label()), abs=edges[1] - edges[0]
        )
    assert not cosines


def test_few_right_pairs_are_all_in_the_histogram() -> None:
    vectors = RowVectors(np.arange(9, dtype=np.float32).reshape(3, 3), np.eye(3, dtype=np.float32))
    right, other = similarities(pool_of(np.eye(3, dtype=bool)), vectors, seed=0)
    assert sorted(right) == [0, 4, 8]
    assert set(other) == {1, 2, 3, 5, 6, 7}


def test_right_pairs_by_a_key_of_many_rows_are_drawn() -> None:
    rows = int(MAX_PAIRS**0.5) + 1
    vectors = np.ones((rows, 1), dtype=np.float32)
    right, _ = similarities(pool_of(np.ones((rows, rows), dtype=bool)), RowVectors(vectors, vectors), seed=0)
    assert len(right) == MAX_PAIRS


def told(found: Evaluation, folder: Path, decided: str | None = None) -> str:
    """The text of the report of an evaluation, without its pairs."""
    run = TrainingRun(recipe=demo(), backbone=folder, training_set=folder, output=folder)
    page, nothing = folder / "report.html", {TRAINED: RowVectors(np.zeros((0, 1)), np.zeros((0, 1)))}
    unused: Any = None
    decision = None if decided else decide(found, run.recipe.registry)
    write_report(found, [], run, unused, nothing, unused, page, decision, decided)
    shown = page.read_text(encoding="utf-8").partition("<body>")[2]
    return " ".join(re.sub("<[^>]*>", " ", shown).split())


def test_a_star_marks_pools_outside_the_mean(tmp_path: Path) -> None:
    small = replace(pool(Task.INSTR), is_large=False, counts=False)
    page = told(evaluation(pool(), small), tmp_path)
    assert "mean mrr@10 over 1 pool " in page
    assert "instr/vi *" in page
    assert "ocr/vi *" not in page
    assert "* outside the mean: too small to count, or a choice between two answers." in page
    assert "150 pairs in 10 groups of linked rows, and 50 distinct targets" in page


def test_pools_that_are_all_too_small_are_told_as_such_everywhere(tmp_path: Path) -> None:
    small = replace(pool(Task.INSTR), is_large=False)
    lonely = replace(pool(Task.TEXT_PAIR), is_large=False, counts=False)
    page = told(replace(evaluation(small, lonely), enough=False), tmp_path)
    assert "mean mrr@10 over 1 pool, too small to tell" in page
    assert "text_pair/vi *" in page
    assert "instr/vi *" not in page
    assert "No pool is large enough to count: the mean is over those without *." in page
    page = told(replace(evaluation(small, small), enough=False), tmp_path)
    assert "mean mrr@10 over 2 pools, all too small to tell" in page
    assert "No pool is large enough to count: the mean is over all of them." in page


def test_choices_stay_out_of_the_mean_unless_there_is_nothing_else(tmp_path: Path) -> None:
    choice = replace(pool(is_choice=True), is_large=True)
    page = told(evaluation(pool(Task.INSTR), choice), tmp_path)
    assert "They stay out of the mean." in page
    alone = told(replace(evaluation(replace(choice, counts=True)), enough=False), tmp_path)
    assert "mean mrr@10 over 1 choice between two answers" in alone
    assert "They stay out of the mean" not in alone
    assert "They are in the mean, as no pool has more answers." in alone


def test_a_star_marks_pools_too_small_to_tell_across_languages_and_among_choices(tmp_path: Path) -> None:
    large, small = pool(), replace(pool(Task.INSTR), is_large=False)
    aside = [replace(each, language="vi>en", counts=False) for each in (large, small)]
    choice = replace(pool(Task.VQA_SINGLE, is_choice=True), is_large=False)
    page = told(replace(evaluation(large, choice), cross_lingual=tuple(aside)), tmp_path)
    assert "instr/vi>en *" in page.replace("&gt;", ">")
    assert "ocr/vi>en *" not in page.replace("&gt;", ">")
    assert "vqa_single/vi *" in page
    assert page.count("A star marks what is too small to tell.") == 2


def test_what_could_not_be_judged_speaks_neither_for_nor_against_a_champion(tmp_path: Path) -> None:
    thin = replace(evaluation(pool()), rows_by_task={Task.OCR: 200, Task.INSTR: 1})
    assert "instr: not judged by retrieval" in told(thin, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    (mark,) = re.findall(r"<li([^>]*)>instr: not judged", page)
    (reason,) = re.findall(r"<li([^>]*)>mrr@10 0.6000: gain", page)
    assert (mark, reason) == (' class="open"', "")
    assert "li.open::marker { color: var(--muted)" in page


def test_what_was_decided_before_is_told_in_place_of_what_would_be_now(tmp_path: Path) -> None:
    page = told(evaluation(pool()), tmp_path, decided="Version 4: better then")
    assert "Promotion Decided before, and not anew by this evaluation. Version 4: better then" in page
    assert "what the registry will call it" not in page
    assert "gain over the untrained model" not in page


def test_the_champion_has_its_number_everywhere(tmp_path: Path) -> None:
    beside = replace(pool(champion=0.5), gain_over_champion=GAIN)
    page = told(replace(evaluation(beside, over_champion=GAIN), rival="champion (version 3)"), tmp_path)
    for words in (
        "over the {}, [",
        "{} BM25",
        "{} the {} at that time",
        "gain over the {} +0.2000",
        "over the {} ocr",
    ):
        assert words.replace("{}", "champion (version 3)") in page


def test_tables_are_whole_where_the_report_is_printed(tmp_path: Path) -> None:
    told(evaluation(pool()), tmp_path)
    (printed,) = re.findall(r"@media print \{(.*)\}", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert ".scroll { overflow: visible; }" in printed


def test_what_a_query_may_not_find_is_no_other_pair_in_the_histogram() -> None:
    judged = pool_of(np.eye(3, dtype=bool))
    judged = replace(judged, pool=replace(judged.pool, excluded=np.array([1, -1, -1])))
    vectors = RowVectors(np.arange(9, dtype=np.float32).reshape(3, 3), np.eye(3, dtype=np.float32))
    _, other = similarities(judged, vectors, seed=0)
    assert set(other) == {2, 3, 5, 6, 7}
