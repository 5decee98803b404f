"""The update of an export's table: afterwards it holds exactly the sides of a training set.

Rows are compared by 64-bit hashes. A row that stands as it should is left alone; one whose pair only changed
its split or its place keeps its vector; the rest is encoded.
"""

import hashlib
import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
from lancedb.table import Table

from vipolyqwen_core.hashes import Hashes, is_among
from vipolyqwen_core.serving.encoder import Vectors
from vipolyqwen_core.serving.encoding_pool import EncodingPool
from vipolyqwen_core.serving.exported_sides import ExportedSides, SideBlock
from vipolyqwen_core.serving.row_hashes import IDENTITY, KEY, row_hashes

logger = logging.getLogger(__name__)

DELETED_AT_ONCE: Final = 100_000
"""Rows of a statement: it takes about a second and 100 MB."""


@dataclass(frozen=True)
class TableUpdate:
    """What an update did."""

    encoded: int
    """Rows whose vector was computed."""
    updated: int
    """Rows that kept their vector but changed their split or their place."""
    deleted: int
    """Rows of pairs that are gone, rows that stood there again, and what a killed update had left behind."""
    content: bytes
    """Digest of the rows that the table holds now."""

    @property
    def changed(self) -> bool:
        """Whether the table is another than before."""
        return bool(self.encoded or self.updated or self.deleted)


class _Encoding(NamedTuple):
    """New rows whose vectors are being computed."""

    rows: pa.Table
    number: np.ndarray
    """Which of the vectors each row has: rows of the same content share one."""
    vectors: Future[Vectors]


def update_table(table: Table, sides: ExportedSides, pool: EncodingPool) -> TableUpdate:
    """Add the rows that the table lacks, block by block, then delete those that are gone or were added anew.

    In this order a vector is never lost to a kill, and search misses nothing meanwhile.

    Raises:
        ValueError: the table is damaged
    """
    before = Snapshot(table)
    identities: list[Hashes] = []
    in_flight: deque[_Encoding] = deque()
    encoded = updated = 0
    for block in sides.blocks():
        identities.append(row_hashes(block.rows, IDENTITY))
        missing = block.take(~before.holds(identities[-1]))
        keys = row_hashes(missing.rows, KEY)
        has_vector = before.knows(keys)
        if has_vector.any():
            add_rows(table, missing.take(has_vector).rows, before.vectors(keys[has_vector]))
            updated += int(has_vector.sum())
        if not has_vector.all():
            in_flight.append(_encode(missing.take(~has_vector), pool))
        while len(in_flight) > pool.most_pending:
            encoded += _add_encoded(table, in_flight.popleft(), encoded)
    while in_flight:
        encoded += _add_encoded(table, in_flight.popleft(), encoded)
    wanted = np.sort(np.concatenate(identities or [np.empty(0, dtype=np.uint64)]))
    stale = before.stale(wanted)
    delete_rows(table, stale)
    content = hashlib.blake2b(wanted.tobytes(), digest_size=16).hexdigest().encode()
    return TableUpdate(encoded, updated, deleted=len(stale) - updated, content=content)


@contextmanager
def damage_named(place: str | Path) -> Iterator[None]:
    """What LanceDB raises inside where files of a table are lost or spoilt says so and what helps.

    Raises:
        ValueError: it raised something
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"the table {place} cannot be read; delete it and export again, which takes the vectors that the "
            "version's Parquet file holds"
        ) from error


class Snapshot:
    """The rows of a table before an update, 40 bytes each. What is added later does not move them."""

    def __init__(self, table: Table) -> None:
        self._dataset = table.to_lance()
        scanner = self._dataset.scanner(columns=list(IDENTITY), with_row_id=True, scan_in_order=True)
        nothing = np.empty(0, dtype=np.uint64)
        keys, identities, row_ids = [nothing], [nothing], [nothing]
        with damage_named(self._dataset.uri):
            for batch in scanner.to_batches():
                rows = pa.Table.from_batches([batch])
                keys.append(row_hashes(rows, KEY))
                identities.append(row_hashes(rows, IDENTITY))
                row_ids.append(rows["_rowid"].to_numpy())
        self.row_ids = np.concatenate(row_ids)
        self._sorted_identities, self._first = np.unique(np.concatenate(identities), return_index=True)
        all_keys = np.concatenate(keys)
        self._places = np.argsort(all_keys)
        self._sorted_keys = all_keys[self._places]

    def holds(self, identities: Hashes) -> np.ndarray:
        """Which rows stand in the table exactly so: [n] bool, of [n] hashes."""
        return is_among(identities, self._sorted_identities)

    def knows(self, keys: Hashes) -> np.ndarray:
        """Which rows have a vector in the table, though their split or place may be another: [n] bool."""
        return is_among(keys, self._sorted_keys)

    def stale(self, wanted: Hashes) -> np.ndarray:
        """Ids of the rows that are not among these sorted identities, and of any that stands there again."""
        kept = self._first[is_among(self._sorted_identities, wanted)]
        return np.delete(self.row_ids, kept)

    def vectors(self, keys: Hashes) -> Vectors:
        """Vectors of n rows, each of which it `knows`: [n, D] float32."""
        places = self._places[np.searchsorted(self._sorted_keys, keys)]
        distinct, number = np.unique(places, return_inverse=True)
        with damage_named(self._dataset.uri):
            found = self._dataset.take(distinct.tolist(), columns=["embedding"])
        return matrix(found["embedding"])[number]


def _encode(block: SideBlock, pool: EncodingPool) -> _Encoding:
    """Start the encoding of new rows; a content that several of them share is encoded once."""
    _, first, number = np.unique(block.content, return_index=True, return_inverse=True)
    return _Encoding(block.rows, number, pool.submit(block.sides, block.requests(first)))


def _add_encoded(table: Table, encoding: _Encoding, encoded_before: int) -> int:
    """Wait for the vectors of new rows and add these; how many there are."""
    num_rows = len(encoding.number)
    add_rows(table, encoding.rows, encoding.vectors.result()[encoding.number])
    logger.info("encoded %d rows", encoded_before + num_rows)
    return num_rows


def add_rows(table: Table, rows: pa.Table, vectors: Vectors) -> None:
    """Append described sides with their vectors and the table's model version."""
    columns = {name: rows[name] for name in rows.column_names}
    model_version = table.schema.metadata[b"model_version"].decode()
    columns["model_version"] = pa.array([model_version] * rows.num_rows, pa.large_string())
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    table.add(pa.table(columns, schema=table.schema))


def delete_rows(table: Table, row_ids: np.ndarray) -> None:
    """Delete rows of a snapshot from its table, in few statements.

    Raises:
        RuntimeError: another process has rewritten the table meanwhile: row ids mean other rows now
    """
    table.checkout_latest()
    dataset = table.to_lance()
    fragments = [fragment.fragment_id for fragment in dataset.get_fragments()]
    if not np.isin(np.unique(row_ids >> np.uint64(32)), fragments).all():
        raise RuntimeError(f"{dataset.uri} was rewritten by another process during the export: run again")
    for start in range(0, len(row_ids), DELETED_AT_ONCE):
        chosen = row_ids[start : start + DELETED_AT_ONCE]
        dataset.delete(f"_rowid IN ({', '.join(map(str, chosen))})")
    table.checkout_latest()


def matrix(column: pa.ChunkedArray) -> Vectors:
    """A column of vectors as rows: [n, D]."""
    dim = column.type.list_size
    return np.asarray(column.combine_chunks().flatten(), dtype=np.float32).reshape(-1, dim)
