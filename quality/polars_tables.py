"""Tables that stages hand on, as Polars reads them: their schemas, whole ones, the two sides of the split."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from vipolyqwen_core.contract import Column, Split
from vipolyqwen_core.corpus.tables import arrow_schema, refuse_damage


def polars_schema(columns: Sequence[Column]) -> pl.Schema:
    """The Polars schema of a table of the contract."""
    empty = pl.from_arrow(arrow_schema(columns).empty_table())
    assert isinstance(empty, pl.DataFrame)
    return empty.schema


def scan_table(path: Path) -> pl.LazyFrame:
    """A Parquet or Arrow table, not read yet."""
    return pl.scan_ipc(path) if path.suffix == ".arrow" else pl.scan_parquet(path)


def scan_split(training_set: Path, split: Split) -> pl.LazyFrame:
    """The rows of one side of the split."""
    return pl.scan_ipc(training_set / split.file)


def scan_training_set(training_set: Path) -> pl.LazyFrame:
    """The rows of both sides of the split."""
    return pl.scan_ipc([training_set / split.file for split in Split])


@contextmanager
def damage_named(tables: Sequence[Path]) -> Iterator[None]:
    """What Polars says of wrong bytes in one of the Parquet tables, with its name: they are read once more.

    Raises:
        ValueError: as `refuse_damage`
    """
    try:
        yield
    except pl.exceptions.ComputeError:
        for table in tables:
            refuse_damage(table)
        raise


def count_rows(rows: pl.LazyFrame) -> int:
    """How many rows there are."""
    return int(rows.select(pl.len()).collect().item())


def count_values(rows: pl.LazyFrame, column: str) -> dict[str, int]:
    """Rows by the value of a column, the most frequent first."""
    counts = rows.group_by(column).len().sort(["len", column], descending=[True, False]).collect()
    return dict(counts.iter_rows())
