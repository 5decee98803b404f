"""Export: vectors of both sides of every pair, as Parquet and as the LanceDB table that search reads.

Sides are encoded without prefix: the everyday use. Only what is new is encoded; rows of pairs that are gone
are deleted. Another model's vectors are made beside the table in use and swapped in at the end, and a killed
export goes on where it was. After an update in place, whoever has the table open can read its old version for
`KEPT_VERSIONS`; a swap deletes the old table at once, so it has to be opened anew.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, NamedTuple

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lancedb.index import FTS, IvfHnswSq
from lancedb.table import Table

from vipolyqwen_core.config import ExportSettings
from vipolyqwen_core.contract import EXPORT
from vipolyqwen_core.corpus.tables import arrow_schema, written_aside
from vipolyqwen_core.serving.current_export import CurrentExport, link_current
from vipolyqwen_core.serving.encoder import Vectors
from vipolyqwen_core.serving.encoding_pool import EncodingPool
from vipolyqwen_core.serving.exported_sides import IDENTITY, KEY, ExportedSides, Hashes, SideBlock, row_hashes
from vipolyqwen_core.serving.search import TABLE
from vipolyqwen_core.workspace import Workspace

logger = logging.getLogger(__name__)

STAGING: Final = "staging"
"""Folder of a table that is still being made, below the folder of its version."""
DELETED_AT_ONCE: Final = 100_000
"""Rows of a statement: it takes about a second and 100 MB."""
KEPT_VERSIONS: Final = timedelta(days=7)
"""How long the table as it was before an update in place can still be read: an open handle stays with its
version. Files of an older one are removed by the next export that changes something. Not so where another
model version, a new champion or a rollback, is swapped in: a second copy of the vectors doubles the disk."""
PARQUET_ROWS: Final = 16_384
CONTENT: Final = b"content"
"""Key of the Parquet file's metadata for the digest of the rows that it holds."""


@dataclass(frozen=True)
class ExportSummary:
    """What an export did."""

    model_version: str
    rows: int
    """Rows of the table."""
    encoded: int
    """Rows whose vector was computed."""
    kept: int
    """Rows that stood already."""
    updated: int
    """Rows that kept their vector but changed their split or their place."""
    deleted: int
    """Rows of pairs that are gone, and what a killed export had left behind."""
    indexed: bool
    """Whether the table has a vector index; without one a search compares every row."""
    parquet: Path
    table: Path
    seconds: float

    @property
    def reused(self) -> bool:
        """Whether nothing had changed."""
        return not (self.encoded or self.updated or self.deleted)


def export(
    training_set: Path, model: Path, model_version: str, workspace: Workspace, settings: ExportSettings
) -> ExportSummary:
    """Bring the exported table up to date with a training set under a model version.

    Raises:
        ValueError: there is no training set, no model, or the version cannot name a folder
    """
    started = time.monotonic()
    if not re.fullmatch(r"\w[\w.+-]*", model_version) or model_version == workspace.lancedb.name:
        raise ValueError(f"model version {model_version!r} cannot name a folder: give a number or a word")
    schema = export_schema(model, model_version)
    folder = workspace.exports / model_version
    parquet = folder / "embeddings.parquet"
    table = _matching_table(workspace.lancedb, schema)
    in_place = table is not None
    if table is None:
        table = _staged_table(folder, schema)
    with EncodingPool(model, settings) as pool:
        update = _Update(table, ExportedSides(training_set), pool)
        update.run()
    content = {**schema.metadata, CONTENT: update.content}
    is_stale = _metadata(parquet) != content  # also where the update before this one was killed too soon
    if update.changed or is_stale or not _is_indexed(table, "text"):
        _index(table, settings)
    if is_stale:
        _write_parquet(table, parquet, content)
    rows = table.count_rows()
    digest = schema.metadata[b"model_digest"].decode()
    current = CurrentExport(model_version, str(model.resolve()), digest, rows, str(parquet))
    current.write(workspace.lancedb if in_place else folder / STAGING, workspace)
    if not in_place:
        with written_aside(workspace.lancedb) as aside:
            os.replace(folder / STAGING, aside)
        table = lancedb.connect(workspace.lancedb).open_table(TABLE)
    link_current(workspace)
    summary = ExportSummary(
        model_version=model_version,
        rows=rows,
        encoded=update.encoded,
        kept=rows - update.encoded - update.updated,
        updated=update.updated,
        deleted=update.deleted,
        indexed=_is_indexed(table, "embedding"),
        parquet=parquet,
        table=workspace.lancedb / f"{TABLE}.lance",
        seconds=time.monotonic() - started,
    )
    logger.info(
        "exported %d rows under version %s in %.0f s: %d encoded, %d kept, %d updated, %d deleted",
        *(
            rows,
            model_version,
            summary.seconds,
            summary.encoded,
            summary.kept,
            summary.updated,
            summary.deleted,
        ),
    )
    return summary


def export_schema(model: Path, model_version: str) -> pa.Schema:
    """The contract's columns with the model's dimension; the metadata name the model.

    Raises:
        ValueError: the directory holds no model
    """
    config = model / "config.json"
    if not config.is_file():
        raise ValueError(f"{model} is no model directory: it has no config.json")
    dim = int(json.loads(config.read_text(encoding="utf-8"))["embedding_dim"])
    schema = arrow_schema(EXPORT)
    place = schema.get_field_index("embedding")
    schema = schema.set(place, pa.field("embedding", pa.list_(pa.float32(), dim)))
    return schema.with_metadata({"model_version": model_version, "model_digest": model_digest(model)})


def model_digest(model: Path) -> str:
    """32 hex digits: hash of the files that decide a vector. A version with other files is another model."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(model.iterdir()):
        if path.name in ("config.json", "tokenizer.json", "preprocessor_config.json") or (
            path.suffix == ".safetensors"
        ):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def _matching_table(folder: Path, schema: pa.Schema) -> Table | None:
    """The table in a LanceDB folder, where it was made by the same model with the same columns."""
    if not (folder / f"{TABLE}.lance").is_dir():
        return None
    table = lancedb.connect(folder).open_table(TABLE)
    return table if table.schema.equals(schema, check_metadata=True) else None


def _staged_table(folder: Path, schema: pa.Schema) -> Table:
    """A table beside the one in use: what a killed export left, or what this version exported before.

    One without rows is filled from the Parquet file, in one commit: a kill in between loses no vector.
    """
    staging, parquet = folder / STAGING, folder / "embeddings.parquet"
    table = _matching_table(staging, schema)
    if table is None:
        shutil.rmtree(staging, ignore_errors=True)
        table = lancedb.connect(staging).create_table(TABLE, schema=schema)
    if schema.metadata.items() <= _metadata(parquet).items() and table.count_rows() == 0:
        with pq.ParquetFile(parquet) as file:
            batches = (batch.cast(schema) for batch in file.iter_batches(PARQUET_ROWS))
            table.add(pa.RecordBatchReader.from_batches(schema, batches))
    return table


class _Standing:
    """The rows of a table as an export finds them, 40 bytes each. What is added later does not move them."""

    def __init__(self, table: Table) -> None:
        self.dataset = table.to_lance()
        scanner = self.dataset.scanner(columns=list(IDENTITY), with_row_id=True, scan_in_order=True)
        parts = [
            (row_hashes(rows, KEY), row_hashes(rows, IDENTITY), rows["_rowid"].to_numpy())
            for rows in (pa.Table.from_batches([batch]) for batch in scanner.to_batches())
        ]
        keys, self.identities, self.row_ids = (_joined(part[number] for part in parts) for number in range(3))
        self.order = np.argsort(keys)
        self.keys = keys[self.order]
        self.sorted_identities = np.sort(self.identities)

    def vectors(self, keys: Hashes) -> Vectors:
        """Vectors of rows that stand, by their keys."""
        places = self.order[np.searchsorted(self.keys, keys)]
        distinct, number = np.unique(places, return_inverse=True)
        return matrix(self.dataset.take(distinct.tolist(), columns=["embedding"])["embedding"])[number]

    def delete_from(self, table: Table, row_ids: np.ndarray) -> None:
        """Delete rows from the table, in few statements.

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


class _Encoding(NamedTuple):
    """Rows of a block whose vectors are being computed."""

    rows: pa.Table
    number: np.ndarray
    """Which of the vectors each row has."""
    vectors: Future[Vectors]


class _Update:
    """Makes a table hold exactly the sides of a training set, and counts what it took."""

    def __init__(self, table: Table, wanted: ExportedSides, pool: EncodingPool) -> None:
        self.table, self.wanted, self.pool = table, wanted, pool
        self.pending: deque[_Encoding] = deque()
        self.model_version = table.schema.metadata[b"model_version"].decode()
        self.encoded = self.updated = self.deleted = 0
        self.content = b""
        """Digest of the rows that the table holds once `run` is done."""

    @property
    def changed(self) -> bool:
        """Whether the table is another than before."""
        return bool(self.encoded or self.updated or self.deleted)

    def run(self) -> None:
        """Add what is missing, block by block, then delete what is gone or was added anew.

        In this order a vector is never lost to a kill, and search misses nothing meanwhile.
        """
        standing = _Standing(self.table)
        wanted: list[Hashes] = []
        for block in self.wanted.blocks():
            identities = row_hashes(block.rows, IDENTITY)
            wanted.append(identities)
            missing = np.flatnonzero(~is_among(identities, standing.sorted_identities))
            if len(missing):
                keys = row_hashes(block.rows, KEY)[missing]
                known = is_among(keys, standing.keys)
                self._move(block, missing[known], standing.vectors(keys[known]))
                self._add(block, missing[~known])
        self._finish(most_pending=0)
        held = np.sort(_joined(wanted))
        self.content = hashlib.blake2b(held.tobytes(), digest_size=16).hexdigest().encode()
        stale = ~is_among(standing.identities, held)
        standing.delete_from(self.table, standing.row_ids[stale])
        self.deleted = int(stale.sum()) - self.updated

    def _move(self, block: SideBlock, places: np.ndarray, vectors: Vectors) -> None:
        """Rows whose pair changed its split or its place: the vector stays."""
        if len(places):
            self._write(block.rows.take(pa.array(places)), vectors)
            self.updated += len(places)

    def _add(self, block: SideBlock, places: np.ndarray) -> None:
        """New rows; a content that several of them share is encoded once."""
        if len(places) == 0:
            return
        _, first, number = np.unique(block.content[places], return_index=True, return_inverse=True)
        requests = [block.request(int(place)) for place in places[first]]
        rows = block.rows.take(pa.array(places))
        self.pending.append(_Encoding(rows, number, self.pool.submit(block.sides, requests)))
        self._finish(self.pool.most_pending)

    def _finish(self, most_pending: int) -> None:
        """Write what was encoded first, until no more than so many blocks are on their way."""
        while len(self.pending) > most_pending:
            done = self.pending.popleft()
            self._write(done.rows, done.vectors.result()[done.number])
            self.encoded += done.rows.num_rows
            logger.info("encoded %d rows", self.encoded)

    def _write(self, rows: pa.Table, vectors: Vectors) -> None:
        columns = {name: rows[name] for name in rows.column_names}
        columns["model_version"] = pa.array([self.model_version] * rows.num_rows, pa.large_string())
        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        self.table.add(pa.table(columns, schema=self.table.schema))


def _joined(hashes: Iterable[Hashes]) -> Hashes:
    return np.concatenate([np.empty(0, dtype=np.uint64), *hashes])


def is_among(hashes: Hashes, known: Hashes) -> np.ndarray:
    """Which hashes are among sorted ones. `np.isin` would sort the millions anew for each block."""
    if len(known) == 0:
        return np.zeros(hashes.shape, dtype=bool)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return np.asarray(known[places] == hashes)


def matrix(column: pa.ChunkedArray) -> Vectors:
    """A column of vectors as rows: [n, D]."""
    dim = column.type.list_size
    return np.asarray(column.combine_chunks().flatten(), dtype=np.float32).reshape(-1, dim)


def _is_indexed(table: Table, column: str) -> bool:
    return any(column in index.columns for index in table.list_indices())


def _index(table: Table, settings: ExportSettings) -> None:
    """Full-text index on the text, vector index where the table is large; what was added joins both."""
    rows = table.count_rows()
    if rows == 0:
        return
    if not _is_indexed(table, "text"):
        words = FTS(base_tokenizer="icu", stem=False, remove_stop_words=False, ascii_folding=True)
        table.create_index("text", config=words)
    if rows >= settings.index_min_rows and not _is_indexed(table, "embedding"):
        table.create_index("embedding", config=IvfHnswSq(distance_type="cosine"))
    table.optimize(cleanup_older_than=KEPT_VERSIONS)


def _write_parquet(table: Table, path: Path, metadata: dict[bytes, bytes]) -> None:
    schema = table.schema.with_metadata(metadata)
    with (
        written_aside(path) as aside,
        pq.ParquetWriter(aside, schema, compression="zstd") as writer,
    ):
        for batch in table.to_lance().to_batches(batch_size=PARQUET_ROWS):
            writer.write_batch(batch.cast(schema))


def _metadata(parquet: Path) -> dict[bytes, bytes]:
    """What a Parquet file says of its model and its rows; nothing where it is absent."""
    return dict(pq.read_schema(parquet).metadata or {}) if parquet.is_file() else {}
