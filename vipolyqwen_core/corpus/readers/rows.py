"""Rows of tables: JSON, JSON Lines, CSV, TSV and Parquet files as numbered mappings.

All of them stream, arrays of a `.json` file too; a broken line or element costs only itself. A line that is
blank is no record.
"""

from collections.abc import Iterator

from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.corpus.readers.delimited_rows import delimited_rows
from vipolyqwen_core.corpus.readers.files import SourceFile
from vipolyqwen_core.corpus.readers.json_rows import json_line_rows, json_rows
from vipolyqwen_core.corpus.readers.parquet_rows import parquet_rows
from vipolyqwen_core.corpus.readers.row_fields import Needs, Row

DELIMITED = (".csv", ".tsv", ".tab", ".txt")
"""Suffixes of tables that may begin with a line of names."""


def read_rows(file: SourceFile, source: Source, needs: Needs = ()) -> Iterator[Row]:
    """Rows of a file, by its suffix.

    Args:
        needs: tells a `.json` file that is one record with a list in it from an object around a list of
            records; without it, the one list of objects in an object is taken for the records
    Raises:
        ValueError: the suffix is none that is read
        OSError, pyarrow.ArrowInvalid: the file cannot be read
    """
    if file.suffix in DELIMITED:
        return delimited_rows(file, source)
    if file.suffix in (".jsonl", ".ndjson", ".jsonlines"):
        return json_line_rows(file, source)
    if file.suffix == ".json":
        return json_rows(file, source, needs)
    if file.suffix in (".parquet", ".pq"):
        return parquet_rows(file)
    raise ValueError(
        f"source {source.name!r}: file {file.name} has suffix {file.suffix!r};"
        " expected .csv, .tsv, .json, .jsonl or .parquet, before .zip or .gz where it is packed"
    )
