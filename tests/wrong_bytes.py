"""Parquet files of which a disk lost some bytes."""

from pathlib import Path

import pyarrow.parquet as pq


def write_wrong_bytes(table: Path, column: str) -> None:
    """Spoil the first values of a column; the footer stays whole."""
    group = pq.read_metadata(table).row_group(0)
    chunks = [group.column(place) for place in range(group.num_columns)]
    (start,) = (chunk.data_page_offset for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)
    content = bytearray(table.read_bytes())
    content[start : start + 50] = b"\x55" * 50
    table.write_bytes(content)
