"""Rows of Parquet files; a value that Python cannot hold costs its row."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from vipolyqwen_core.corpus.readers.files import SourceFile
from vipolyqwen_core.corpus.readers.packed_files import open_bytes
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
MOST_BYTES = 1024 * 1024 * 1024
"""Bytes of rows that are read at once, if each of their values is the dictionary of its column. A row that
may take more is read alone, as it seldom does: of long values a dictionary holds a thousand."""
UNCONVERTIBLE = (ValueError, OverflowError, LookupError)
"""What Python raises for a value of Arrow that it cannot hold: a time out of its range or of an unknown zone,
a text that is no UTF-8, a struct with a name twice."""

_VARINT = rb"[\x80-\xff]{0,4}[\x00-\x7f]"
_PAGE_BEGINS = re.compile(rb"\x15(%b)\x15(%b)" % (_VARINT, _VARINT), re.DOTALL)
_DICTIONARY_PAGE = b"\x04"  # 2 in zigzag


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
        batches = (
            table.iter_batches(_num_rows(group, stream), [place]) for place, group in enumerate(groups)
        )
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


def _num_rows(group: pq.RowGroupMetaData, stream: IO[bytes]) -> int:
    """Rows of a group in memory at once."""
    chunks = [group.column(place) for place in range(group.num_columns)]
    longest = max((chunk.total_uncompressed_size for chunk in chunks if chunk.has_dictionary_page), default=0)
    by_mean = BATCH_BYTES * group.num_rows // max(group.total_byte_size, 1)
    if longest > 0:
        by_mean = min(by_mean, max(REPEATED_BYTES // longest, FEWEST_ROWS))
    num_rows = min(max(by_mean, 1), MOST_ROWS)
    columns = [(chunk, math.ceil(chunk.num_values / max(group.num_rows, 1))) for chunk in chunks]
    if num_rows * sum(chunk.total_uncompressed_size * values for chunk, values in columns) <= MOST_BYTES:
        return int(num_rows)
    num_bytes = sum(_dictionary_bytes(chunk, stream) * values for chunk, values in columns)
    return int(min(num_rows, max(MOST_BYTES // max(num_bytes, 1), 1)))


def _dictionary_bytes(chunk: pq.ColumnChunkMetaData, stream: IO[bytes]) -> int:
    """Bytes of the dictionary of a column, which pyarrow does not tell; all of the column where unknown.

    Reference:
        parquet-format, PageHeader: fields 1 and 2 are the kind of page and its size unpacked, in Thrift's
        compact protocol
    """
    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    stream.seek(max(start, 0))  # a broken file may say anything
    found = _PAGE_BEGINS.match(stream.read(16))
    if found is None:
        return int(chunk.total_uncompressed_size)
    if found[1] != _DICTIONARY_PAGE:
        return 0
    return int(sum((byte & 0x7F) << 7 * place for place, byte in enumerate(found[2])) >> 1)  # zigzag


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
