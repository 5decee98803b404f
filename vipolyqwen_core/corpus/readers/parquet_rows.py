"""Rows of Parquet files; a value that Python cannot hold costs its row."""

from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vipolyqwen_core.corpus.readers.files import SourceFile, open_bytes
from vipolyqwen_core.corpus.readers.records import RecordError
from vipolyqwen_core.corpus.readers.row_fields import Key, Row
from vipolyqwen_core.corpus.storage import PIECE_BYTES
from vipolyqwen_core.corpus.text import compose

MOST_ROWS = 256
"""Rows of a Parquet file in memory at once, at most."""
BATCH_BYTES = 32 * 1024 * 1024
"""Bytes of these rows, by the mean of their row group."""
REPEATED_BYTES = 256 * 1024 * 1024
"""Bytes of the rows where a value is held once for all of them by a dictionary of the file: in memory it
stands in each row."""
FEWEST_ROWS = 8
"""Rows that are read at once even if they take more: one by one they take forty times as long. Any large row
group may have such a value, since the file says of nearly all columns that they have a dictionary."""
GROUP_BYTES = 256 * 1024 * 1024
"""Larger row groups are read page by page: of another storage many small parts take longer than one."""
UNCONVERTIBLE = (ValueError, OverflowError, LookupError)
"""What Python raises for a value of Arrow that it cannot hold: a time out of its range or of an unknown zone,
a text that is no UTF-8, a struct with a name twice."""


def parquet_rows(file: SourceFile) -> Iterator[Row]:
    """Rows of a Parquet file, in batches that fit the memory.

    Raises:
        OSError: the file is packed once more
        pyarrow.ArrowException: it is broken
    """
    rows: list[tuple[dict[Key, Any], RecordError | None]]
    with open_bytes(file.location) as stream:
        if not stream.seekable():
            raise OSError("a Parquet file that is packed once more is not read: unpack it")
        number = 0
        metadata = pq.read_metadata(stream)
        groups = [metadata.row_group(place) for place in range(metadata.num_row_groups)]
        is_large = any(group.total_byte_size > GROUP_BYTES for group in groups)
        table = pq.ParquetFile(
            stream, metadata=metadata, pre_buffer=not is_large, buffer_size=PIECE_BYTES if is_large else 0
        )
        names = [compose(name) for name in table.schema_arrow.names]
        ambiguous = [name for name, count in Counter(names).items() if count > 1]
        batches = (table.iter_batches(_num_rows(group), [place]) for place, group in enumerate(groups))
        for batch in chain.from_iterable(batches):
            batch = batch.rename_columns(names)
            try:
                rows = [(fields, None) for fields in batch.to_pylist()]
            except UNCONVERTIBLE:
                rows = [_converted(batch.slice(place, 1)) for place in range(batch.num_rows)]
            for fields, error in rows:
                number += 1
                fields |= {name: _ambiguous(name) for name in ambiguous}
                yield Row(number, fields, error)


def _num_rows(group: pq.RowGroupMetaData) -> int:
    """Rows of a group in memory at once."""
    chunks = [group.column(place) for place in range(group.num_columns)]
    longest = max((chunk.total_uncompressed_size for chunk in chunks if chunk.has_dictionary_page), default=0)
    by_mean = BATCH_BYTES * group.num_rows // max(group.total_byte_size, 1)
    if longest > 0:
        by_mean = min(by_mean, max(REPEATED_BYTES // longest, FEWEST_ROWS))
    return int(min(max(by_mean, 1), MOST_ROWS))


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
