"""Copies that curation dropped, and the side that they hand on to the row that stays in their place.

A corpus that grows may bring a better copy of a row, or one that stands earlier: with another score, or with
a word more. It has another id. Without its copy's side, what was trained on could come back to evaluate.
"""

import polars as pl

from quality.assignments import SCHEMA
from quality.id_numbers import id_number
from quality.row_duplicates import EXACT, NEAR
from vipolyqwen_core.contract import Split
from vipolyqwen_core.workspace import Workspace


def replaced_copies(workspace: Workspace, sources: list[str]) -> pl.LazyFrame:
    """The copies that curation dropped: `sample_id`, `kept` (the sample that stays), where the two differ.

    Both are numbers, as in the assignments.
    """
    ledgers = [workspace.curated(name) / "ledger.parquet" for name in sources]
    return (
        pl.scan_parquet(ledgers)
        .filter(pl.col("rule").is_in([EXACT, NEAR]), pl.col("sample_id") != pl.col("value"))
        .select(id_number(pl.col("sample_id")), kept=id_number(pl.col("value")))
    )


def hand_on(assignments: pl.DataFrame, copies: pl.LazyFrame) -> pl.DataFrame:
    """The assignments, and those of rows without one that stay in the place of an assigned copy.

    Such a row takes its copy's component and side; of several copies that of one that trained.

    Args:
        assignments: SCHEMA of `assignments.py`, by `sample_id`
        copies: `sample_id`, `kept`
    """
    if assignments.is_empty():
        return assignments
    trains = pl.col("split") == pl.lit(Split.TRAIN.value)
    heirs = (
        copies.join(assignments.lazy(), on="sample_id")
        .join(assignments.lazy().select(kept="sample_id"), on="kept", how="anti")
        .sort(trains, "component", descending=[True, False])
        .unique("kept", keep="first", maintain_order=True)
        .select("component", "split", sample_id="kept")
        .select(*SCHEMA)
        .collect(engine="streaming")
    )
    return assignments if heirs.is_empty() else pl.concat([assignments, heirs]).sort("sample_id")
