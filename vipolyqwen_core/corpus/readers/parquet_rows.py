"""Rows of Parquet files; a value that Python cannot hold costs its row."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vipolyqwen_core.corpus.readers.files import SourceFile, open_bytes
from vipolyqwen_core.corpus.readers.records import RecordError
from vipolyqwen_core.corpus.readers.row_fields import Key, Row
from vipolyqwen_core.corpus.text import compose

PARQUET_ROWS = 256
"""Rows of a Parquet file in memory at once."""
UNCONVERTIBLE = (ValueError, OverflowError, LookupError)
"""What Python raises for a value of Arrow that it cannot hold: a time out of its range or of an unknown zone,
a text that is no UTF-8, a struct with a name twice."""


def parquet_rows(file: SourceFile) -> Iterator[Row]:
    rows: list[tuple[dict[Key, Any], RecordError | None]]
    with open_bytes(file.location) as stream:
        if not stream.seekable():
            raise OSError("a Parquet file that is packed once more is not read: unpack it")
        number = 0
        table = pq.ParquetFile(stream)
        names = [compose(name) for name in table.schema_arrow.names]
        ambiguous = [name for name, count in Counter(names).items() if count > 1]
        for batch in table.iter_batches(PARQUET_ROWS):
            batch = batch.rename_columns(names)
            try:
                rows = [(fields, None) for fields in batch.to_pylist()]
            except UNCONVERTIBLE:
                rows = [_converted(batch.slice(place, 1)) for place in range(batch.num_rows)]
            for fields, error in rows:
                number += 1
                fields |= {name: _ambiguous(name) for name in ambiguous}
                yield Row(number, fields, error)


def _ambiguous(name: str) -> RecordError:
    return RecordError("ambiguous_column", f"several columns are called {name!r}", name)


def _converted(row: pa.RecordBatch) -> tuple[dict[Key, Any], RecordError | None]:
    """The fields of one row, or why it has none."""
    fields: dict[Key, Any] = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            (fields[name],) = column.to_pylist()
        except UNCONVERTIBLE as error:
            reason = f"the column {name!r} holds a value of {column.type} that cannot be read"
            return {}, RecordError("wrong_type", reason, str(error))
    return fields, None
