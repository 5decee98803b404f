"""Recall and precision of planted copies, on sets whose answers are plain."""

import polars as pl
import pytest

from tests.benchmarks.planted_copies import precision, recalls
from tests.benchmarks.synthetic_corpus import ANSWERS_SCHEMA

SETS = [
    # row, original, kind, similarity
    (0, None, "fresh", None),
    (1, 0, "exact", 1.0),
    (2, 0, "near_typing", 0.9),
    (3, 0, "near_template", 0.5),
    (4, None, "fresh", None),
    (5, 4, "shared_query", None),
]


def rows(*staying: int) -> pl.DataFrame:
    answers = [("s", row, row, original, kind, similar) for row, original, kind, similar in SETS]
    table = pl.DataFrame(answers, schema=ANSWERS_SCHEMA, orient="row")
    return table.with_columns(stays=pl.col("row").is_in(staying))


@pytest.mark.parametrize(
    ("staying", "exact", "near", "above"),
    [
        ((0, 1, 2, 3, 4, 5), 0.0, 0.0, 0.0),
        ((0, 2, 3, 4, 5), 1.0, 0.0, 0.0),
        ((1, 2, 3, 4, 5), 1.0, 0.0, 0.0),  # the original went for its exact copy: nothing near was found
        ((1, 3, 4, 5), 1.0, 0.5, 1.0),
        ((2, 3, 4, 5), 1.0, 0.5, 1.0),
        ((3, 4, 5), 1.0, 1.0, 1.0),
        ((4, 5), 1.0, 1.0, 1.0),  # precision's matter
    ],
)
def test_recall_of_copies(staying: tuple[int, ...], exact: float, near: float, above: float) -> None:
    assert recalls(rows(*staying), (0.85,)) == {"exact": exact, "near": near, "near 0.85": above}


def test_precision_counts_sets_that_are_gone_whole() -> None:
    assert precision(rows(0, 1, 2, 3, 4, 5)) == 1.0
    assert precision(rows(3, 4, 5)) == 1.0
    assert precision(rows(4, 5)) == 0.75
    assert precision(rows(3, 5)) == 0.75
