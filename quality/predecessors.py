"""Rows that stand in the place of another one that was assigned and is gone: they take after it.

A new version of a corpus may bring a row with another score, a copy with a word more, another answer to the
same question, or another question on the same picture or of the same group. It has another id. If it did not
know its predecessor, what was trained on could come back to evaluate. It is linked to what its predecessor
was linked to, and the side of the predecessor counts for its component. So does the side of whatever else was
in the component and is gone. The other way round, a copy that is dropped may be all that is left in a later
version: it is remembered with the row that stays in its place.
"""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from quality.accepted import stages_of
from quality.assignments import UNKNOWN, side_hashes
from quality.id_numbers import ID_NUMBER, id_number
from quality.row_duplicates import EXACT, NEAR
from vipolyqwen_core.workspace import Workspace

SCHEMA = {"row": pl.UInt32, "place": pl.UInt32}
"""A row, and the place of a predecessor of it in the assignments."""


def find_predecessors(
    rows: pl.DataFrame, assignments: pl.DataFrame, dropped: pl.LazyFrame, sides: pl.LazyFrame
) -> pl.DataFrame:
    """Assigned samples that are gone, and the rows that take after them: SCHEMA.

    These say the same, or were kept for them, or are the first with one of their two sides or pictures or
    with their group, or else are the first row that goes on in their component.

    A row may have several, and may have an earlier side of its own.

    Args:
        rows: `row`, `sample_id`, `content`, `earlier` (the place of its sample in the assignments)
        assignments: SCHEMA of `assignments.py`
        dropped: `sample_id`, `kept`: copies that curation dropped, and the sample that stays
        sides: `row`, `hash`: sides, pictures and groups of rows that link by themselves
    """
    places = assignments.drop("split").with_row_index("place")
    known = rows.select("row", place="earlier").drop_nulls("place")
    gone = places.join(known, on="place", how="anti").lazy()
    same = gone.filter(pl.col("content") != UNKNOWN).join(rows.lazy().select("row", "content"), on="content")
    copies = gone.join(dropped, on="sample_id").join(rows.lazy().select("row", kept="sample_id"), on="kept")
    replaced = [table.select(*SCHEMA) for table in (same, copies, _first_alike(gone, sides))]
    own = pl.concat(replaced).unique().collect(engine="streaming")
    shared = places.select("place", "component").lazy().join(gone, on="component", how="semi")
    goes_on = shared.join(pl.concat([known, own]).lazy(), on="place").group_by("component")
    others = gone.join(goes_on.agg(pl.col("row").min()), on="component").select(*SCHEMA)
    return pl.concat([own, others.collect(engine="streaming")]).unique().sort(*SCHEMA)


def _first_alike(gone: pl.LazyFrame, sides: pl.LazyFrame) -> pl.LazyFrame:
    """Samples that are gone, and the first row with the same side, picture or group: `place`, `row`.

    The first does: rows with the same side, picture or group are linked to each other.
    """
    known = gone.filter(pl.col("content") != UNKNOWN)
    if known.head(1).collect().is_empty():  # then the texts need not be read
        return pl.LazyFrame(schema=SCHEMA)
    hashes = [known.select("place", hash=each) for each in side_hashes()]
    hashes.append(known.select("place", hash="links").explode("hash").drop_nulls("hash"))
    found = pl.concat(hashes).unique()
    first = sides.join(found, on="hash", how="semi").group_by("hash").agg(pl.col("row").min())
    return found.join(first, on="hash").select("place", pl.col("row").cast(pl.UInt32))


def copies_of_rows(rows: pl.DataFrame, copies: pl.DataFrame, dropped: pl.LazyFrame) -> pl.DataFrame:
    """Samples that were dropped as copies of a row which stays: `row`, `sample_id`, `content`.

    Args:
        rows: `row`, `sample_id`, `content`
        copies: `row`, `kept`: rows that are dropped, for which others stay
        dropped: `sample_id`, `kept`: copies that curation dropped, and the sample that stays
    """
    stays = copies.select(pl.col("row", "kept").cast(pl.UInt32))
    own = stays.join(rows.select("row", "sample_id", "content"), on="row")
    elsewhere = (
        dropped.join(rows.lazy().select("row", kept="sample_id"), on="kept")
        .join(rows.lazy().select("sample_id"), on="sample_id", how="anti")
        .join(stays.lazy().rename({"kept": "final"}), on="row", how="left")
        .select("sample_id", row=pl.coalesce("final", "row"), content=pl.lit(UNKNOWN, dtype=ID_NUMBER))
    )
    found = [own.select("sample_id", row="kept", content="content"), elsewhere.collect(engine="streaming")]
    return pl.concat(found).unique().select("row", "sample_id", "content")


def dropped_copies(workspace: Workspace, sources: Mapping[str, Path]) -> pl.LazyFrame:
    """The copies that curation dropped for another row: `sample_id`, `kept`, as numbers.

    Args:
        sources: folder of the accepted version of each
    """
    ledgers = [stages_of(place, name, workspace)[0] / "ledger.parquet" for name, place in sources.items()]
    ledgers = [ledger for ledger in ledgers if ledger.is_file()]
    if not ledgers:
        return pl.LazyFrame(schema={"sample_id": ID_NUMBER, "kept": ID_NUMBER})
    return (
        pl.scan_parquet(ledgers)
        .filter(pl.col("rule").is_in([EXACT, NEAR]), pl.col("sample_id") != pl.col("value"))
        .select(id_number(pl.col("sample_id")), kept=id_number(pl.col("value")))
    )
