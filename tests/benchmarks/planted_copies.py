"""What a search for copies found of those that were planted in the synthetic corpus.

A fresh row, its exact copies and its near copies are a set. A set has one content for the fresh row with
its exact copies, and one for each near copy; a content stays where a row of it does. That an original is gone
says nothing by itself of its near copies: an exact copy of it may be the one that stays.
"""

from collections.abc import Sequence

import polars as pl

from tests.benchmarks.synthetic_corpus import EXACT


def recalls(rows: pl.DataFrame, least_similarities: Sequence[float]) -> dict[str, float]:
    """Shares of what ought to be found, by name.

    `exact`: of the rows of a content, all but one ought to go. `near`: of the contents of a set, all but one.
    `near 0.85`: of the near copies of at least this similarity, those that do not stay beside the content of
    their original.

    Args:
        rows: the answers (ANSWERS_SCHEMA) with a column `stays`
    """
    copied = pl.when(pl.col("kind") == EXACT).then("original").otherwise("row")
    contents = rows.group_by(content=copied).agg(rows=pl.len(), staying=pl.col("stays").sum())
    near = (
        rows.filter(pl.col("kind").str.starts_with("near"))
        .join(contents.select(original="content", beside=pl.col("staying") > 0), on="original")
        .with_columns(found=~(pl.col("stays") & pl.col("beside")))
    )
    sets = near.group_by("original").agg(
        rows=1 + pl.len(), staying=pl.col("beside").first().cast(pl.Int64) + pl.col("stays").sum()
    )
    found = {"exact": _all_but_one(contents), "near": _all_but_one(sets)}
    for least in least_similarities:
        found[f"near {least}"] = (
            near.filter(pl.col("similarity") >= least).select(pl.col("found").mean()).item()
        )
    return found


def _all_but_one(groups: pl.DataFrame) -> float:
    """Of the `rows` of groups that ought to go, all but one of each, the share that is not `staying`."""
    ought = pl.col("rows").cast(pl.Int64) - 1
    gone = pl.min_horizontal(pl.col("rows").cast(pl.Int64) - pl.col("staying").cast(pl.Int64), ought)
    return float(groups.select(gone.sum() / ought.sum()).item())


def precision(rows: pl.DataFrame) -> float:
    """Share of the dropped rows that were dropped rightly: one row of a set that is gone whole was not.

    Args:
        rows: the answers (ANSWERS_SCHEMA) with a column `stays`
    """
    copy = pl.col("similarity").is_not_null()
    sets = rows.group_by(pl.when(copy).then("original").otherwise("row")).agg(pl.col("stays").any())
    dropped = rows.select((~pl.col("stays")).sum()).item()
    return float(1 - sets.select((~pl.col("stays")).sum()).item() / max(dropped, 1))
