"""The ledger: every row that did not make it, with rule, reason and place; and the equations that hold it.

reading:  records = records that gave at least one pair + records in the ledger
a stage:  pairs in = pairs out + pairs in the ledger
"""

from pathlib import Path

import polars as pl

from quality.polars_tables import polars_schema
from vipolyqwen_core.contract import LEDGER
from vipolyqwen_core.corpus.readers.records import VALUE_CHARS
from vipolyqwen_core.corpus.tables import StageSummary
from vipolyqwen_core.written_aside import written_aside

READ_STAGE = "read"
LEDGER_SCHEMA = polars_schema(LEDGER)


def rejected_pairs(rows: pl.DataFrame, stage: str) -> pl.DataFrame:
    """Ledger lines of rejected pairs.

    Args:
        rows: sample_id, source, file, line, item of the pair; rule, reason, value of the rejection
    """
    return rows.select(
        stage=pl.lit(stage),
        source="source",
        sample_id="sample_id",
        rule="rule",
        reason="reason",
        value=pl.col("value").str.slice(0, VALUE_CHARS),
        file="file",
        line="line",
        item="item",
    ).cast(LEDGER_SCHEMA)


def write_ledger(lines: pl.DataFrame | pl.LazyFrame, path: Path) -> None:
    """Write a ledger, sorted by source and position: the same file for the same lines, in whichever order."""
    order = ("source", "file", "line", "item", "stage")
    others = [name for name in LEDGER_SCHEMA if name not in order]
    with written_aside(path) as aside:
        lines.lazy().sort(*order, *others, nulls_last=False).sink_parquet(aside)


def missing_records(summary: StageSummary) -> int:
    """Records that neither gave a pair nor stand in the ledger: 0, or the stage has a defect."""
    return summary.records - summary.records_with_pairs - sum(summary.records_rejected.values())


def missing_pairs(summary: StageSummary) -> int:
    """Pairs that neither went on nor stand in the ledger: 0, or the stage has a defect."""
    return summary.pairs_in - summary.pairs_out - sum(summary.rejected.values())
