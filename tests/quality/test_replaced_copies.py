"""What stays in the place of an assigned copy takes its side."""

import polars as pl

from quality.assignments import SCHEMA
from quality.id_numbers import ID_NUMBER
from quality.replaced_copies import hand_on


def test_the_side_of_a_copy_is_handed_on_where_there_is_none():
    assignments = pl.DataFrame(
        {
            "sample_id": [1, 2, 3, 4],
            "component": [1, 1, 3, 4],
            "split": ["train", "train", "eval", "eval"],
        },
        schema=SCHEMA,
    )
    copies = pl.LazyFrame(
        {"sample_id": [3, 1, 3, 9, 4], "kept": [5, 5, 6, 7, 2]},
        schema={"sample_id": ID_NUMBER, "kept": ID_NUMBER},
    )
    handed = hand_on(assignments, copies)
    fresh = handed.join(assignments, on="sample_id", how="anti")
    assert fresh.rows() == [(5, 1, "train"), (6, 3, "eval")]
    assert handed.join(fresh, on="sample_id", how="anti").equals(assignments)
    assert handed["sample_id"].is_sorted()


def test_nothing_is_handed_on_where_nothing_was_assigned():
    copies = pl.LazyFrame({"sample_id": [1], "kept": [2]}, schema={"sample_id": ID_NUMBER, "kept": ID_NUMBER})
    assert hand_on(pl.DataFrame(schema=SCHEMA), copies).is_empty()
