"""What the report draws of a pool."""

import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.sparse import csr_array

from vipolyqwen_core.contract import Task
from vipolyqwen_core.evaluation import plots
from vipolyqwen_core.evaluation.encoding import RowVectors
from vipolyqwen_core.evaluation.judged_pool import JudgedPool
from vipolyqwen_core.evaluation.plots import loss_curves
from vipolyqwen_core.evaluation.report import MAX_PAIRS, similarities
from vipolyqwen_core.evaluation.retrieval import Pool


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
