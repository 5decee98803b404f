"""What stays in the place of an assigned copy takes its side."""

import polars as pl

from quality.replaced_copies import hand_on


def test_the_side_of_a_copy_is_handed_on_where_there_is_none() -> None:
    assignments = pl.DataFrame(
        {
            "sample_id": ["a", "b", "c", "d"],
            "component": ["a", "a", "c", "d"],
            "split": ["train", "train", "eval", "eval"],
        }
    )
    copies = pl.DataFrame({"sample_id": ["c", "a", "c", "x", "d"], "kept": ["k", "k", "m", "n", "b"]}).lazy()
    handed = hand_on(assignments, copies)
    fresh = handed.join(assignments, on="sample_id", how="anti")
    assert fresh.rows() == [("k", "a", "train"), ("m", "c", "eval")]
    assert handed.join(fresh, on="sample_id", how="anti").equals(assignments)
    assert handed["sample_id"].is_sorted()


def test_nothing_is_handed_on_where_nothing_was_assigned() -> None:
    empty = pl.DataFrame(schema={"sample_id": pl.String, "component": pl.String, "split": pl.String})
    assert hand_on(empty, pl.LazyFrame({"sample_id": ["a"], "kept": ["b"]})).is_empty()
