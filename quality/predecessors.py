"""Rows that stand in the place of another one that was assigned and is gone: they take after it.

A new version of a corpus may bring a row with another score, or a copy with a word more. It has another id.
If it did not know its predecessor, what was trained on could come back to evaluate. It is linked to what its
predecessor was linked to, and the side of the predecessor counts for its component.
"""

from collections.abc import Sequence

import polars as pl

from quality.assignments import UNKNOWN
from quality.id_numbers import ID_NUMBER, id_number
from quality.row_duplicates import EXACT, NEAR
from vipolyqwen_core.workspace import Workspace

SCHEMA = {"row": pl.UInt32, "place": pl.UInt32}
"""A row, and the place of a predecessor of it in the assignments."""
NO_PREDECESSORS = pl.DataFrame(schema=SCHEMA)


def find_predecessors(rows: pl.DataFrame, assignments: pl.DataFrame, dropped: pl.LazyFrame) -> pl.DataFrame:
    """Assigned samples that are gone, and the rows that say the same or were kept for them: SCHEMA.

    A row may have several, and may have an earlier side of its own.

    Args:
        rows: `row`, `sample_id`, `content`, `earlier` (the place of its sample in the assignments)
        assignments: SCHEMA of `assignments.py`
        dropped: `sample_id`, `kept`: copies that curation dropped, and the sample that stays
    """
    places = assignments.select("sample_id", "content").with_row_index("place").lazy()
    gone = places.join(rows.lazy().select(place="earlier").drop_nulls(), on="place", how="anti")
    same = gone.filter(pl.col("content") != UNKNOWN).join(rows.lazy().select("row", "content"), on="content")
    copies = gone.join(dropped, on="sample_id").join(rows.lazy().select("row", kept="sample_id"), on="kept")
    found = pl.concat([table.select(*SCHEMA) for table in (same, copies)]).unique()
    return found.collect(engine="streaming").sort(*SCHEMA)


def dropped_copies(workspace: Workspace, sources: Sequence[str]) -> pl.LazyFrame:
    """The copies that curation dropped for another row: `sample_id`, `kept`, as numbers."""
    ledgers = [workspace.curated(name) / "ledger.parquet" for name in sources]
    ledgers = [ledger for ledger in ledgers if ledger.is_file()]
    if not ledgers:
        return pl.LazyFrame(schema={"sample_id": ID_NUMBER, "kept": ID_NUMBER})
    return (
        pl.scan_parquet(ledgers)
        .filter(pl.col("rule").is_in([EXACT, NEAR]), pl.col("sample_id") != pl.col("value"))
        .select(id_number(pl.col("sample_id")), kept=id_number(pl.col("value")))
    )
