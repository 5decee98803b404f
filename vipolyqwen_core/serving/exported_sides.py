"""The sides of a training set as rows of the export, without their vectors: what the table should hold."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vipolyqwen_core.contract import EXPORT, Side, Split
from vipolyqwen_core.corpus.image_store import ImageStore, read_pins
from vipolyqwen_core.corpus.tables import arrow_schema
from vipolyqwen_core.hashes import Hashes
from vipolyqwen_core.serving.stored_sides import SideRequest, StoredSides, read_split, side_texts
from vipolyqwen_core.training.identity import data_version, refuse_built_anew

BLOCK_ROWS: Final = 4096
"""Pairs that are looked at together."""

_DESCRIBED: Final = tuple(column for column in EXPORT if column.name not in ("embedding", "model_version"))


@dataclass(frozen=True)
class SideBlock:
    """One side of some pairs of a split."""

    sides: StoredSides
    """Reads what has to be encoded."""
    side: Side
    rows: pa.Table
    """The columns of `EXPORT` without model version and embedding."""
    content: Hashes
    """Equal content, equal vector."""
    pairs: NDArray[np.int64]
    """Row of each pair in its split."""

    def take(self, chosen: NDArray[np.bool_]) -> "SideBlock":
        """The chosen rows of this block."""
        rows = self.rows.filter(pa.array(chosen))
        return SideBlock(self.sides, self.side, rows, self.content[chosen], self.pairs[chosen])

    def requests(self, places: NDArray[np.int64]) -> list[SideRequest]:
        """What to encode for some rows of this block: the side without prefix, the everyday use."""
        return [SideRequest(int(pair), self.side) for pair in self.pairs[places]]


class ExportedSides:
    """All sides of a training set, in blocks, always in the same order."""

    def __init__(self, training_set: Path) -> None:
        """Open the tables.

        Raises:
            ValueError: there is no training set, or it was built anew in this moment
        """
        version = data_version(training_set)
        self._splits = {split: read_split(training_set, split) for split in Split}
        self._sides = {split: StoredSides(training_set, split, version) for split in Split}
        self._pinned = read_pins(training_set)
        refuse_built_anew(training_set, version)
        self._origin_columns: dict[str, pa.Array] = {}

    def blocks(self) -> Iterator[SideBlock]:
        """Both sides of all pairs."""
        for split, table in self._splits.items():
            first_row = 0
            for batch in table.to_batches(max_chunksize=BLOCK_ROWS):
                pairs = pa.Table.from_batches([batch])
                numbers = np.arange(first_row, first_row + pairs.num_rows)
                for side in Side:
                    rows = self._described(pairs, split, side)
                    content = pairs[f"{side.value}_hash"].to_numpy()
                    yield SideBlock(self._sides[split], side, rows, content, numbers)
                first_row += pairs.num_rows

    def _described(self, pairs: pa.Table, split: Split, side: Side) -> pa.Table:
        count = pairs.num_rows
        columns = {
            "sample_id": pairs["sample_id"],
            "side": pa.array([side.value] * count, pa.large_string()),
            "prefix": pa.nulls(count, pa.large_string()),
            "split": pa.array([split.value] * count, pa.large_string()),
            "origin": pa.array(self._origins(pairs, side), pa.large_string()),
            "source": pairs["source"],
            "task": pairs["task"],
            "language": pairs["language"],
            "text": pa.array(side_texts(pairs, side), pa.large_string()),
            "image_ids": pairs[f"{side.value}_images"],
        }
        return pa.table(columns).cast(arrow_schema(_DESCRIBED))

    def _origins(self, pairs: pa.Table, side: Side) -> list[str]:
        """Paths of a side's pictures below the image root; file:line of the pair where it shows none."""
        columns = pairs.select(["source", f"{side.value}_image_rows", "file", "line"]).to_pydict().values()
        return [
            ", ".join(self._origin(source, number) for number in shown) if shown else f"{file}:{line}"
            for source, shown, file, line in zip(*columns, strict=True)
        ]

    def _origin(self, source: str, row: int) -> str:
        if source not in self._origin_columns:
            store = ImageStore(**self._pinned[source])
            self._origin_columns[source] = store.table(["origin"])["origin"].combine_chunks()
        return str(self._origin_columns[source][row])
