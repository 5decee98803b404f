"""Stands in for Lance where its wheel, 85 MB, cannot be brought: one Arrow file, read by row.

Only `tests.benchmarks.gpu` puts this folder on the path, and only where there is no Lance; its report says
so. It has just what `vipolyqwen_core.corpus.image_store` asks of Lance, for one version of one dataset.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import pyarrow as pa

FILE = "rows.arrow"


class ArrowDataset:
    """The rows of one file, memory-mapped."""

    version = 1

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / FILE

    def count_rows(self) -> int:
        """Number of rows."""
        return self._table.num_rows

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Some columns of some rows, in this order."""
        return self._table.select(list(columns)).take(pa.array(rows, type=pa.int64()))

    def to_table(self, columns: Sequence[str], scan_in_order: bool = True) -> pa.Table:
        """Some columns of all rows, in their order."""
        return self._table.select(list(columns))

    @cached_property
    def _table(self) -> pa.Table:
        return pa.ipc.open_file(pa.memory_map(str(self.path))).read_all()


def write_dataset(reader: pa.RecordBatchReader, folder: str, schema: pa.Schema, mode: str) -> ArrowDataset:
    """Write the one version."""
    assert mode == "create", mode
    Path(folder).mkdir(parents=True)
    with pa.ipc.new_file(str(Path(folder) / FILE), schema) as writer:
        for batch in reader:
            writer.write_batch(batch)
    return ArrowDataset(folder)


def dataset(folder: str, version: int | None = None) -> ArrowDataset:
    """Open it."""
    if version not in (None, 1):
        raise ValueError(f"{folder} has only version 1, not {version}")
    return ArrowDataset(folder)
